"""What is sent: values, no bus, no database."""

from dataclasses import dataclass

from easybus import Topic


@dataclass
class OrderPlaced:
    order: int


orders = Topic("orders", OrderPlaced)
