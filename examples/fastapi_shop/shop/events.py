"""What the shop tells: values that other services may import."""

from dataclasses import dataclass
from uuid import UUID

from easybus import Topic


@dataclass(frozen=True)
class OrderPlaced:
    """A customer has ordered."""

    order: UUID
    item: str
    quantity: int


orders = Topic("orders", OrderPlaced)
