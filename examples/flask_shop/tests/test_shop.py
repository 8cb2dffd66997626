"""The shop on virtual time: no server, no worker, no waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from shop.models import create_tables
from shop.settings import Settings
from shop.web import create_app

from easybus.testing import BlockingHarness


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Flask]:
    settings = Settings(database=f"sqlite:///{tmp_path}/shop.db?library=sqlite3")
    create_tables(settings)
    shop = create_app(settings)
    yield shop
    shop.extensions["engine"].dispose()


@pytest.fixture
def bus(shop: Flask) -> Iterator[BlockingHarness]:
    bus = shop.extensions["easybus"]
    with bus.testing(storage=bus.url).blocking as harness:
        yield harness


@pytest.fixture
def client(shop: Flask) -> FlaskClient:
    return shop.test_client()


def order(client: FlaskClient, customer: str) -> str:
    response = client.post("/orders", json={"customer": customer, "amount": "9.50"})
    assert response.status_code == 201
    return response.get_json()["id"]


def reminders(client: FlaskClient, placed: str) -> int:
    return client.get(f"/orders/{placed}/invoice").get_json()["reminders"]


def test_an_order_has_its_invoice_and_after_a_fortnight_a_reminder(bus: BlockingHarness, client: FlaskClient) -> None:
    placed = order(client, "ann")
    assert client.get(f"/orders/{placed}/invoice").status_code == 404
    bus.drain()
    assert client.get(f"/orders/{placed}/invoice").json == {"text": "ann: 9.50", "paid": False, "reminders": 0}
    bus.advance(days=13)
    assert reminders(client, placed) == 0
    bus.advance(days=1)
    assert reminders(client, placed) == 1


def test_who_has_paid_is_not_reminded(bus: BlockingHarness, client: FlaskClient) -> None:
    placed = order(client, "ann")
    bus.drain()
    assert client.post(f"/orders/{placed}/payment").status_code == 204
    bus.advance(days=15)
    assert len(bus.sent("payments-due")) == 1
    assert client.get(f"/orders/{placed}/invoice").json == {"text": "ann: 9.50", "paid": True, "reminders": 0}


def test_an_order_of_nobody_is_a_dead_letter(bus: BlockingHarness, client: FlaskClient) -> None:
    order(client, " ")
    bus.drain()
    [letter] = bus.dead("invoices")
    assert (letter.reason, letter.attempts) == ("no customer to write to", 1)


def test_an_order_that_is_refused_sends_nothing(bus: BlockingHarness, client: FlaskClient) -> None:
    assert client.post("/orders", json={"customer": "ann", "amount": "much"}).status_code == 422
    bus.drain()
    assert len(bus.sent("orders")) == 0
