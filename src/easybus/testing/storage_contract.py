"""What every storage passes: to be subclassed as `driver_contract.DriverContract` is.

A storage that the engine does not offer (None) is a skip that says so. An engine that is a database also overrides
`caller`, a user's own connection to it, apart from the engine's (see `storage_base.Caller`).
"""

from __future__ import annotations

from .storage_base import Caller, StorageBase
from .storage_halves import TransactionContract
from .storage_keys import IdempotencyContract
from .storage_letters import DeadLetterContract
from .storage_outbox import OutboxContract

__all__ = [
    "Caller",
    "DeadLetterContract",
    "IdempotencyContract",
    "OutboxContract",
    "StorageBase",
    "StorageContract",
    "TransactionContract",
]


class StorageContract(IdempotencyContract, DeadLetterContract, TransactionContract, OutboxContract):
    """All of them."""
