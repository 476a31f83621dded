"""Values in, SQLAlchemy statements out. Nothing here executes anything."""
