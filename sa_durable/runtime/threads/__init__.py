"""Threads that outlive an outage, and what wakes them."""
