"""SQLAlchemy statements, built from values. Nothing here executes a statement."""
