"""The worker's own way to the database."""
