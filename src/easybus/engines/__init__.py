"""The engines: each one a room of its own, behind `contract`."""
