"""Tests of services that use easybus, and the conformance kits for authors of engines."""

from .blocking import BlockingHarness
from .harness import Harness, Sent
from .virtual import VirtualClock

__all__ = ["BlockingHarness", "Harness", "Sent", "VirtualClock"]
