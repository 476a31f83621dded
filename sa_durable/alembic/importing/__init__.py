"""Import tasks from other tables: an application's own, and those of durable and absurd."""
