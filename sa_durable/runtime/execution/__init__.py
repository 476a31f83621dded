"""Starting handlers, and what becomes of how they end."""
