"""Found when Django starts. A handler works in the transaction that ends its message: exactly once."""

from django.db import transaction

from easybus import Reject, Router

from .events import OrderPlaced, orders
from .models import Order, Receipt

router = Router()


@router.handler(orders, "receipts", within=transaction.atomic, lease=10)
def write_receipt(event: OrderPlaced) -> None:
    order = Order.objects.get(pk=event.order)
    if not order.customer:
        raise Reject("an order of nobody")
    Receipt.objects.create(order=order, text=f"{order.customer}: {order.cents / 100:.2f}")
