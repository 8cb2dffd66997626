"""Where the time goes on sqlite:///: processor time of each step that the file's thread takes for a batch of SLOTS.

The steps are those of the engine itself, called one after the other on a connection of its own, without an event loop
and without another thread that wants Python's lock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easybus.clock import SystemClock
from easybus.engines.contract import Claimed, DeclareQueue, Publication
from easybus.engines.sqlite import schema
from easybus.engines.sqlite.connect import connect
from easybus.engines.sqlite.driver import remove
from easybus.engines.sqlite.fused import SqliteFusedDriver
from easybus.engines.sqlite.keys import claim_keys, complete_keys
from easybus.engines.sqlite.topology import Topology
from easybus.message import Message, new_id
from easybus.payloads import Payloads
from easybus.receiving.claim import Intake
from easybus.receiving.invoke import Invoker, Providers
from easybus.receiving.subscription import HandlerOptions, Subscription

from . import children, machine
from .ours import SLOTS, Order, order
from .report import Figure

STEPS = {
    "begin sending": "sending: BEGIN",
    "insert": "sending: routes, and the rows",
    "commit sending": "sending: COMMIT",
    "begin": "handling: BEGIN",
    "complete": "handling: the last batch's keys CLAIMED → DONE",
    "ack": "handling: the last batch's messages deleted",
    "own": "handling: the due messages read and leased",
    "parse": "handling: envelopes, payloads and digests",
    "claim": "handling: keys written as CLAIMED",
    "commit": "handling: COMMIT",
}


class _Writer:
    """What the driver asks of the file's thread for these steps."""

    def __init__(self) -> None:
        self.topology = Topology()
        self.touched: set[str] = set()


async def _handle(_: Order) -> None: ...


def cost(path: str, messages: int) -> dict[str, float]:
    """Microseconds of each step for each message."""
    spent = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        spent[name] += time.thread_time() - began

    connection, writer = connect(path, "apsw"), _Writer()
    given: Any = writer
    schema.prepare(connection, path)
    driver = SqliteFusedDriver(SystemClock(), lambda: given)
    subscription = Subscription("orders", HandlerOptions(concurrency=SLOTS), Payloads((Order,)))
    subscription.functions[Order] = Invoker(_handle, Providers({}))
    keys: Any = object()
    parse = Intake(subscription, driver, keys, fused=True, logger=keys).parse
    connection.rows("BEGIN IMMEDIATE")
    writer.topology.declare(connection, [DeclareQueue("orders")])
    connection.rows("COMMIT")

    waiting = [_publication(subscription, number) for number in range(messages)]
    for first in range(0, messages, SLOTS):
        with step("begin sending"):
            connection.rows("BEGIN IMMEDIATE")
        with step("insert"):
            driver._publish(given, connection, waiting[first : first + SLOTS], {})
        with step("commit sending"):
            connection.rows("COMMIT")

    tokens: list[tuple[str, float]] = []
    deliveries: list[Any] = []
    while True:
        with step("begin"):
            connection.rows("BEGIN IMMEDIATE")
        with step("complete"):
            done = complete_keys(connection, tokens, driver.now()) if tokens else []
        assert all(done)
        with step("ack"):
            remove(connection, deliveries)
        with step("own"):
            deliveries = driver.own(given, connection, "orders", SLOTS, 60.0)
        with step("parse"):
            claims = [claim for claim, _ in map(parse, deliveries) if claim is not None]
        with step("claim"):
            results = claim_keys(connection, claims, driver.now()) if claims else []
        with step("commit"):
            connection.rows("COMMIT")
        if not deliveries:
            connection.close()
            return {name: seconds / messages * 1e6 for name, seconds in spent.items()}
        tokens = [(found.token, 86_400.0) for found in results if isinstance(found, Claimed)]


def _publication(subscription: Subscription, number: int) -> Publication:
    assert subscription.payloads is not None
    payload, kind = subscription.payloads.encode(order(number))
    return Publication(False, "orders", Message(id=new_id(), payload=payload, headers={"type": kind}).to_bytes())


def measure(
    directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {name: [] for name in STEPS}
    speeds = [machine.speed(directory)]
    for number in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            found = children.run("steps", "cost", path=f"{fresh}/bus.db", messages=messages)
        for name, value in found.items():
            seen[name].append(value)
        speeds.append(machine.speed(directory))
        say(f"round {number + 1} of {rounds}: {sum(found.values()):.1f} µs")
    title = (
        f"Processor time of the SQLite thread for each message, in batches of {SLOTS}; {messages:,} messages, {rounds} "
        "rounds."
    )
    return title, [Figure(text, seen[name], "µs") for name, text in STEPS.items()], speeds
