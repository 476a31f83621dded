"""A small host application: payments, their webhooks, and the tasks that handle them."""
