"""Seeded faults: bugs that buses have had, put into ours by replacing one function, with a run that catches it."""

from . import known, ours
from .fault import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "known", "ours"]
