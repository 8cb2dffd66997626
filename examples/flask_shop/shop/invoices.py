"""Invoices: one for each order, and a reminder to those who do not pay.

Handlers are plain functions, run in threads. What they do in `session` takes place exactly once: the bus commits it
together with its own note that the message is handled.
"""

from sqlalchemy.orm import Session

from easybus import Bus, Reject, Router

from .events import OrderPlaced, PaymentDue, orders, payments_due
from .models import Invoice, Order

FORTNIGHT = 14 * 86_400.0

router = Router()


@router.handler(orders, "invoices", within=Session, lease=5)
def write_invoice(event: OrderPlaced, session: Session, bus: Bus) -> None:
    """The invoice, and a message for later, in one transaction."""
    if not event.customer.strip():
        raise Reject("no customer to write to")
    session.add(Invoice(order=event.order, text=f"{event.customer}: {event.amount}"))
    bus.blocking.send(payments_due, PaymentDue(event.order), delay=FORTNIGHT, within=session)


@router.handler(payments_due, within=Session, lease=5)
def remind(due: PaymentDue, session: Session) -> None:
    """A fortnight later."""
    order = session.get_one(Order, due.order, with_for_update=True)
    if not order.paid:
        order.reminders += 1
