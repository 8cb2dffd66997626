"""The shop over HTTP.

gunicorn --workers 4 'shop.web:create_app()'
"""

from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID, uuid4

from flask import Blueprint, Flask, abort, current_app, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.exceptions import UnprocessableEntity

from easybus import Bus

from .bus import create_bus
from .events import OrderPlaced, orders
from .models import Invoice, Order
from .settings import Settings

api = Blueprint("shop", __name__)


def _bus() -> Bus:
    return current_app.extensions["easybus"]


def _sessions() -> sessionmaker[Session]:
    return current_app.extensions["sessions"]


@api.post("/orders")
def place_order() -> tuple[dict[str, str], int]:
    """The order and the event are one transaction: both are there, or neither."""
    placed = _order_of(request.get_json())
    with _sessions().begin() as session:
        session.add(Order(id=placed.order, customer=placed.customer, amount=placed.amount))
        _bus().blocking.send(orders, placed, within=session)
    return {"id": str(placed.order)}, 201


def _order_of(body: Any) -> OrderPlaced:
    try:
        return OrderPlaced(uuid4(), str(body["customer"]), Decimal(body["amount"]))
    except (LookupError, TypeError, ValueError, InvalidOperation):
        raise UnprocessableEntity('send {"customer": "ann", "amount": "9.50"}') from None


@api.post("/orders/<uuid:id>/payment")
def pay(id: UUID) -> tuple[str, int]:
    """The customer has paid."""
    with _sessions().begin() as session:
        order = session.get(Order, id, with_for_update=True) or abort(404)
        order.paid = True
    return "", 204


@api.get("/orders/<uuid:id>/invoice")
def invoice(id: UUID) -> dict[str, object]:
    """An order's invoice, and how often its customer was reminded of it; 404 as long as there is none."""
    with _sessions()() as session:
        order = session.get(Order, id) or abort(404)
        invoice = session.scalar(select(Invoice).where(Invoice.order == id)) or abort(404)
        return {"text": invoice.text, "paid": order.paid, "reminders": order.reminders}


def create_app(settings: Settings | None = None) -> Flask:
    """The web application.

    The bus opens at its first send, in whichever process that is; before a fork it is closed, so the application may
    be loaded before gunicorn's workers are (`--preload`). SQLAlchemy's pool must not cross a fork: it is empty here.
    """
    settings = settings or Settings.from_environment()
    engine = create_engine(settings.sqlalchemy_url)
    app = Flask(__name__)
    app.extensions["easybus"] = create_bus(settings, engine)
    app.extensions["sessions"] = sessionmaker(engine)
    app.extensions["engine"] = engine
    app.register_blueprint(api)
    return app
