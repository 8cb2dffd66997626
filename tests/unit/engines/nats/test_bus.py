"""A whole bus on NATS: handled, retried, delayed, and kept as dead letters."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from easybus import Bus, Reject
from easybus.errors import ConfigurationError


async def test_what_fails_is_retried_and_what_is_rejected_is_a_dead_letter(url: str) -> None:
    bus = Bus(url, dedupe=None, dead_letters="queue")
    orders = bus.topic("orders", str)
    seen: list[str] = []
    done = asyncio.Event()

    @orders.handler("receipts", route_key="paid.#", retry=lambda attempts: 0.05 if attempts < 3 else None)
    async def receipt(order: str) -> None:
        seen.append(order)
        if order == "bad":
            raise Reject("bad")
        if order == "twice" and seen.count("twice") < 3:
            raise ValueError("again")
        if len(seen) == 5:
            done.set()

    async with bus.handling():
        began = time.monotonic()
        for order in ("good", "bad", "twice"):
            await orders.send(order, route_key="paid.eu")
        await orders.send("elsewhere", route_key="refunded")
        await orders.send("later", route_key="paid.eu", delay=1.2)
        async with asyncio.timeout(15.0):
            while "later" not in seen or seen.count("twice") < 3:
                await asyncio.sleep(0.02)
        assert time.monotonic() - began >= 1.195
        assert sorted(seen) == ["bad", "good", "later", "twice", "twice", "twice"]
        driver = bus.driver
        async with asyncio.timeout(5.0):
            while (await driver.stats("receipts.dead")).ready != 1:
                await asyncio.sleep(0.02)


async def test_a_message_is_handled_once_with_a_storage_beside(url: str, tmp_path: Path) -> None:
    bus = Bus(url, storage=f"sqlite:///{tmp_path}/keys.db")
    emails = bus.queue("emails", str)
    seen: list[str] = []

    @emails.handler
    async def email(to: str) -> None:
        seen.append(to)

    async with bus.handling():
        message = await emails.send("x")
        async with asyncio.timeout(10.0):
            while not seen:
                await asyncio.sleep(0.02)
        await emails.send(message)
        await emails.send("last")
        async with asyncio.timeout(10.0):
            while "last" not in seen:
                await asyncio.sleep(0.02)
    assert seen == ["x", "last"]


async def test_without_a_storage_the_line_to_write_is_shown(url: str) -> None:
    bus = Bus(url)
    emails = bus.queue("emails", str)

    @emails.handler
    async def email(to: str) -> None: ...

    with pytest.raises(ConfigurationError, match="storage="):
        async with bus.handling():
            pass


async def test_what_no_client_can_read_is_noted(url: str) -> None:
    bus = Bus(url, storage="memory://noted")
    bus.queue("jobs", int)
    report = await bus.check()
    assert [found.where for found in report.contradictions] == ["memory://noted"]
    assert ["sync_interval: always" in note.text for note in report.notes] == [True]
    assert [one.says for one in report.guarantees] == ["once confirmed, never lost"]
