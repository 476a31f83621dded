"""A shop that sells one thing at a time: an example of a durable workflow. README.md explains it."""
