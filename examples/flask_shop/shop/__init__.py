"""A shop: orders come in over HTTP, and workers write the invoices."""
