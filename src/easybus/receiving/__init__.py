"""Receiving: from a fetched delivery to its outcome."""
