"""The contexts that handlers are given, and their durable operations."""
