"""The stock's part in an order."""

from sqlalchemy.ext.asyncio import AsyncSession

from easybus import Reject, Router, fixed

from .events import OrderPlaced, orders
from .models import Item, Order

router = Router()


class OutOfStock(Exception):
    """Too few are left; more may come."""


@router.handler(orders, "stock", within=AsyncSession, lease=5, retry={OutOfStock: fixed(3600, attempts=12)})
async def reserve(event: OrderPlaced, session: AsyncSession) -> None:
    """Exactly once: the bus commits this session together with its own note that the event is handled."""
    item = await session.get(Item, event.item, with_for_update=True)
    if item is None:
        raise Reject(f"there is no {event.item!r}")
    if item.left < event.quantity:
        raise OutOfStock(f"{item.left} left of {event.item!r}, {event.quantity} ordered")
    item.left -= event.quantity
    order = await session.get_one(Order, event.order)
    order.reserved = True
