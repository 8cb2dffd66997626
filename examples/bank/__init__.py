"""A bank of three services whose workers and database are killed, and whose every account is right in the end."""
