"""A shop: orders come in over HTTP, and workers take them from the stock."""
