"""Background loops of a worker: claim, extend leases, wake, sweep, clean up and listen. Each has a thread."""
