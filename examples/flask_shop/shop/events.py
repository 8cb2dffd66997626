"""What the shop tells, and what it asks of itself: values that other services may import."""

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from easybus import Queue, Topic


@dataclass(frozen=True)
class OrderPlaced:
    """A customer has ordered."""

    order: UUID
    customer: str
    amount: Decimal


@dataclass(frozen=True)
class PaymentDue:
    """By now the customer should have paid."""

    order: UUID


orders = Topic("orders", OrderPlaced)
payments_due = Queue("payments-due", PaymentDue)
