"""What a worker does again and again: claim, extend, wake, sweep, clean up, listen."""
