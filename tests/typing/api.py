# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false
"""Never run: what editors and type checkers must see of the public API. Lines behind an `ignore` must fail."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict, assert_type

import msgspec

from easybus import Bus, BusQueue, BusTopic, Message, Outgoing, Queue, Router, Topic, exponential, schedule


@dataclass
class OrderPaid:
    id: int


@dataclass
class OrderRefunded:
    id: int


class Email(TypedDict):
    to: str


class Parcel(msgspec.Struct):
    weight: float


class Client: ...


orders = Topic("orders", OrderPaid, OrderRefunded)
assert_type(orders, Topic[OrderPaid | OrderRefunded])
emails = Queue("emails", Email, delay=5)
assert_type(emails, Queue[Email])
assert_type(Topic("many", int, str, bytes, float, OrderPaid, OrderRefunded, Parcel, bool),
            Topic[int | str | bytes | float | OrderPaid | OrderRefunded | Parcel | bool])  # fmt: skip
Queue("emails", Email, delays=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

router = Router()


@router.handler(orders, "receipts", OrderPaid, route_key="paid.#", concurrency=4, retry=schedule(1, 5))
async def receipt(event: OrderPaid, http: Client) -> None: ...


@router.handler(orders, "books")
async def book(event: OrderPaid | OrderRefunded) -> None: ...


@router.handler(orders, "audit")
def audit(message: Message) -> None: ...


@router.handler(
    emails, retry={ValueError: exponential(attempts=3)}, dedupe=timedelta(hours=1), within=sqlite3.Connection
)
async def email(one: Email, db: sqlite3.Connection) -> bool:
    return True


@router.committed(orders, timeout=30)
async def paid(event: OrderPaid | OrderRefunded) -> bool | None:
    return None


assert_type(audit(Message()), None)

bus = Bus("sqlite:///shop.db", service="shop", dedupe=None)
bus.include(router)
bus.provide(Client, Client)
bus.provide(Client, Client, per="message")

bound = bus.bind(orders)
assert_type(bound, BusTopic[OrderPaid | OrderRefunded])
jobs = bus.queue("jobs", OrderPaid)
assert_type(jobs, BusQueue[OrderPaid])
short = bus.topic("short", OrderPaid)
assert_type(short, BusTopic[OrderPaid])


@short.handler("receipts")
async def short_receipt(event: OrderPaid) -> None: ...


@short.handler("wrong")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
async def wrong(event: OrderRefunded) -> None: ...


@short.committed
async def done(event: OrderPaid) -> bool | None: ...


async def main(session: object) -> None:
    async with bus:
        assert_type(await short.send(OrderPaid(1), route_key="paid.eu", delay=60), Message)
        await short.send(OrderPaid(1), within=session)
        await short.send(OrderRefunded(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await jobs.send_many([OrderPaid(1), Outgoing(OrderPaid(2), delay=1)])
        await bound.send(OrderRefunded(1), route_keys="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        async with short.transaction(OrderPaid(1)) as message:
            assert_type(message, Message)
        assert_type(message.decode(OrderPaid), OrderPaid)
    async with bus.handling():
        pass
    await bus.run(only=["jobs"])
    async with bus.testing() as t:
        await t.advance(minutes=5)
    bus.blocking.send(short, OrderPaid(1))


_: Callable[[Message], None] = audit
