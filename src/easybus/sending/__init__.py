"""Sending: plain, with check-back, and from the outbox."""
