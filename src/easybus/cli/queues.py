"""What is on the engine: queues, topics; and emptying a queue."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.live import Live

from ..engines.contract import DeclareQueue, QueueStats
from ..errors import NotDeclared
from .output import confirm, console, counted, guarded, say, show_json, show_table, table
from .target import AppOption, FactoryOption, JsonOption, Opened, StorageOption, Target, UrlOption, YesOption, opened

_HEADINGS = ("queue", "ready", "in flight", "delayed", "dead", "delay")


@guarded
async def queues(
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks of --watch.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show every queue and how many messages it holds.

    A `-` is what the engine cannot count. `--json --watch` prints a line for each look.
    """
    async with opened(Target(app, factory, url, storage)) as at:
        if not watch:
            found = await _look(at)
            if as_json:
                show_json(found)
            else:
                show_table(_HEADINGS, _rows(found), "There are no queues.")
        elif as_json:
            while True:
                show_json({"at": time.time(), "queues": await _look(at)})
                await asyncio.sleep(every)
        elif not sys.stdout.isatty():
            while True:
                show_table(_HEADINGS, _rows(await _look(at)), "There are no queues.")
                say("")
                sys.stdout.flush()
                await asyncio.sleep(every)
        else:
            with Live(console=console(), auto_refresh=False, transient=False) as live:
                while True:
                    live.update(table(_HEADINGS, _rows(await _look(at))), refresh=True)
                    await asyncio.sleep(every)


async def _look(at: Opened) -> list[dict[str, Any]]:
    dead = await at.storages.dead_letters.count() if at.storages.dead_letters is not None else None
    found: list[dict[str, Any]] = []
    for queue in await at.driver.queues():
        stats = await _stats(at, queue)
        found.append(
            {
                "queue": queue.name,
                "ready": stats.ready,
                "in_flight": stats.in_flight,
                "delayed": stats.delayed,
                "dead": None if dead is None else dead.get(queue.name, 0),
                "delay": queue.delay,
            }
        )
    return found


async def _stats(at: Opened, queue: DeclareQueue) -> QueueStats:
    try:
        return await at.driver.stats(queue.name)
    except NotDeclared:  # dropped since it was listed
        return QueueStats(None, None, None)


def _rows(found: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [
        [row["queue"], row["ready"], row["in_flight"], row["delayed"], row["dead"], f"{row['delay']:g}s"]
        for row in found
    ]


@guarded
async def topics(
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every topic, and which queues get which route keys of it."""
    async with opened(Target(app, factory, url, storage)) as at:
        found = await at.driver.topics()
    if as_json:
        show_json(
            [
                {"topic": name, "bindings": [{"queue": b.queue, "route_key": b.route_key} for b in bindings]}
                for name, bindings in found
            ]
        )
        return
    rows: list[Sequence[object]] = []
    for name, bindings in found:
        rows += [[name, binding.queue, binding.route_key] for binding in bindings] or [[name, None, None]]
    show_table(("topic", "queue", "route key"), rows, "There are no topics.")


@guarded
async def purge(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="The queue to empty.")],
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove every message of a queue for good, but those in a handler's hands.

    Dead letters stay: `easybus dead delete` removes those.
    """
    async with opened(Target(app, factory, url, storage)) as at:
        try:
            stats = await at.driver.stats(queue)
        except NotDeclared:
            raise await at.no_queue(queue) from None
        held = "its messages" if stats.ready is None else counted(stats.ready + (stats.delayed or 0), "message")
        confirm(f"Remove {held} from {queue} at {at.engine.url} for good?", yes=yes)
        removed = await at.driver.purge(queue)
    if as_json:
        show_json({"queue": queue, "removed": removed})
    else:
        say(f"removed {removed} from {queue}")
