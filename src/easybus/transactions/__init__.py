"""Transactions of the caller: one small module per database library, found by the module of the object."""
