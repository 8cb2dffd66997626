"""memory:// : everything in the process, kept, leased and fenced for real; what other engines are compared with."""

from .engine import create

__all__ = ["create"]
