"""The client libraries that an engine could be built on, each under what our drivers do: hundreds published together
and confirmed, hundreds taken and acked together, and a server that is killed and comes back.

One module an engine; each client is a class with `open`, `publish`, `consume` and `close`.
"""
