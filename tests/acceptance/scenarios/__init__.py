"""What a service does and what must come of it, whatever dies on the way: run in simulation, and by real processes."""

from .handling import (
    Chain,
    Conflict,
    Dead,
    Deferred,
    Doubting,
    Fresh,
    Handle,
    Outgrown,
    Poison,
    Replay,
    Retry,
    Slow,
    Within,
)
from .scenario import FileLedger, Job, Ledger, Scenario, Setting, Stock
from .sending import Checkback, Outbox

__all__ = [
    "Chain", "Checkback", "Conflict", "Dead", "Deferred", "Doubting", "FileLedger", "Fresh", "Handle", "Job", "Ledger",
    "Outbox", "Outgrown", "Poison", "Replay", "Retry", "Scenario", "Setting", "Slow", "Stock", "Within",
]  # fmt: skip
