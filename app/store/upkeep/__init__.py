"""Care of a database: its check from outside, and the expiry and deletion of what jobs left."""
