"""Does this URL work? One message there and back, and what the engine can do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import typer

from ..engines.contract import Ack, DeclareQueue, Publication, Settled
from ..errors import EasybusError
from ..message import Message, new_id
from ..shown import hidden
from .output import FAILED, guarded, say, show_json, show_table
from .target import AppOption, FactoryOption, JsonOption, Opened, StorageOption, Target, UrlOption, opened

R = TypeVar("R")
_STORAGES = ("idempotency", "dead_letters", "transactions", "outbox")
_WAIT = 10.0


class _Report:
    """Each step with how long it took, said as it ends."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[dict[str, Any]] = []
        self._quiet = quiet

    async def step(self, name: str, work: Awaitable[R]) -> R:
        began = time.perf_counter()
        error: str | None = None
        try:
            return await work
        except EasybusError as failure:
            error = hidden(str(failure))
            raise
        finally:
            took = (time.perf_counter() - began) * 1000
            self.steps.append({"step": name, "ok": error is None, "milliseconds": round(took, 1), "error": error})
            if not self._quiet:
                say(f"{'ok    ' if error is None else 'FAILED'} {name} ({took:.1f} ms){': ' + error if error else ''}")


@guarded
async def doctor(
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Connect, send a message through a queue of its own, drop that queue, and show what the engine can do.

    Exit 1 if any step fails. A SQLite file that does not exist is made.
    """
    report = _Report(quiet=as_json)
    facts: dict[str, Any] = {}
    failed = False
    try:
        context = opened(Target(app, factory, url, storage), create_file=True)
        at = await report.step("connect", context.__aenter__())
        try:
            facts = _facts(at)
            if at.engine.driver is not None:
                await _probe(at, report)
        finally:
            await report.step("disconnect", context.__aexit__(None, None, None))
    except EasybusError as error:
        if not any(step["error"] == hidden(str(error)) for step in report.steps):
            raise
        failed = True
    if as_json:
        show_json({"ok": not failed, "steps": report.steps, **facts})
    elif facts:
        say("")
        show_table(("capability", "value"), _rows(facts), "")
    if failed:
        raise typer.Exit(FAILED)


async def _probe(at: Opened, report: _Report) -> None:
    queue = f"easybus.doctor.{new_id()}"
    body = Message.new(b"are you there?").to_bytes()
    await report.step("declare a queue", at.driver.declare([DeclareQueue(queue)]))
    try:
        await report.step("send", _send(at, queue, body))
        await report.step("receive", _receive(at, queue, body))
    finally:
        await report.step("drop the queue", at.driver.drop([DeclareQueue(queue)]))


async def _send(at: Opened, queue: str, body: bytes) -> None:
    for result in await at.driver.publish([Publication(False, queue, body)]):
        if isinstance(result, Exception):
            raise result


async def _receive(at: Opened, queue: str, body: bytes) -> None:
    deliveries = await at.driver.fetch(queue, 1, _WAIT, 30.0)
    if [delivery.body for delivery in deliveries] != [body]:
        raise EasybusError(f"not what was sent: {len(deliveries)} messages within {_WAIT:.0f} s")
    settled = await at.driver.settle(queue, [Ack(delivery) for delivery in deliveries])
    if settled != [Settled.DONE]:
        raise EasybusError(f"the acknowledgement was {settled[0].value}")


def _facts(at: Opened) -> dict[str, Any]:
    caps = None if at.engine.driver is None else dataclasses.asdict(at.engine.driver.caps)
    return {
        "url": at.engine.url,
        "storage_url": at.storages.url,
        "capabilities": caps,
        "storages": {name: getattr(at.storages, name) is not None for name in _STORAGES},
    }


def _rows(facts: dict[str, Any]) -> list[list[object]]:
    def shown(value: object) -> object:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

    capabilities: dict[str, object] = facts["capabilities"] or {}
    storages: dict[str, object] = facts["storages"]
    rows: list[list[object]] = [["url", facts["url"]], ["storage url", facts["storage_url"]]]
    rows += [[name.replace("_", " "), shown(value)] for name, value in capabilities.items()]
    rows += [[f"stores {name.replace('_', ' ')}", shown(value)] for name, value in storages.items()]
    return rows
