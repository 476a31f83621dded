"""A small host application: payments, their webhooks, and the tasks that follow from them."""
