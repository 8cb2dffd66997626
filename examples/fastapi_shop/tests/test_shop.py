"""The shop on virtual time: no server, no worker, no waiting."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from shop.models import create_tables
from shop.settings import Settings
from shop.web import create_app

from easybus.testing import Harness


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncGenerator[FastAPI]:
    settings = Settings(database=f"sqlite:///{tmp_path}/shop.db?library=sqlite3")
    await create_tables(settings)
    shop = create_app(settings)
    yield shop
    await shop.state.engine.dispose()


@pytest.fixture
async def bus(shop: FastAPI) -> AsyncGenerator[Harness]:
    async with shop.state.bus.testing(storage=shop.state.bus.url) as harness:
        yield harness


@pytest.fixture
async def client(shop: FastAPI) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(shop), base_url="http://shop") as client:
        yield client


async def deliver(client: AsyncClient, item: str, quantity: int) -> None:
    response = await client.post(f"/items/{item}/deliveries", json={"quantity": quantity})
    assert response.status_code == 204


async def order(client: AsyncClient, item: str, quantity: int = 1) -> str:
    response = await client.post("/orders", json={"item": item, "quantity": quantity})
    assert response.status_code == 201
    return response.json()["id"]


async def reserved(client: AsyncClient, placed: str) -> bool:
    return (await client.get(f"/orders/{placed}")).json()["reserved"]


async def test_an_order_is_reserved(bus: Harness, client: AsyncClient) -> None:
    await deliver(client, "book", 1)
    placed = await order(client, "book")
    assert not await reserved(client, placed)
    await bus.drain()
    assert await reserved(client, placed)


async def test_an_order_waits_for_the_next_delivery(bus: Harness, client: AsyncClient) -> None:
    await deliver(client, "book", 2)
    placed = await order(client, "book", 3)
    await bus.advance(minutes=90)
    assert [str(error) for error in bus.failures] == ["2 left of 'book', 3 ordered"] * 2
    await deliver(client, "book", 1)
    await bus.advance(minutes=31)
    assert await reserved(client, placed)


async def test_an_order_for_what_there_is_not_is_a_dead_letter_until_there_is(
    bus: Harness, client: AsyncClient
) -> None:
    placed = await order(client, "atlas")
    await bus.drain()
    [letter] = bus.dead("stock")
    assert letter.reason == "there is no 'atlas'"
    await deliver(client, "atlas", 1)
    await bus.retry("stock")
    assert await reserved(client, placed)
    assert bus.dead("stock") == []


async def test_an_order_that_is_refused_sends_nothing(bus: Harness, client: AsyncClient) -> None:
    response = await client.post("/orders", json={"item": "book", "quantity": 0})
    assert response.status_code == 422
    await bus.drain()
    assert len(bus.sent("orders")) == 0
