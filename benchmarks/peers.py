"""Other embedded queues, as they come, each with late acknowledgement where it has one; in a process of its own each.

None of them recognises a copy of a message that was handled, so they do less for each than easybus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .ours import order

PEERS: dict[str, str] = {
    "litequeue": "synchronous=NORMAL: a power failure may lose what was confirmed",
    "persistqueue": "synchronous=FULL",
    "huey": "synchronous=OFF, at most once: not durable, shown for scale",
}
DURABLE = ("litequeue", "persistqueue")


def litequeue(directory: str, messages: int) -> dict[str, float]:
    """`put` each, then `pop` and `done` each."""
    from litequeue import LiteQueue

    queue = LiteQueue(str(Path(directory) / "litequeue.db"))
    bodies = _bodies(messages)

    def handle() -> None:
        task = queue.pop()
        queue.done(task.message_id)

    return _measured(queue.put, handle, bodies)


def persistqueue(directory: str, messages: int) -> dict[str, float]:
    """`SQLiteAckQueue`: `put` each, then `get` and `ack` each."""
    from persistqueue import SQLiteAckQueue

    queue: Any = SQLiteAckQueue(str(Path(directory) / "persistqueue"))
    bodies = _bodies(messages)

    def handle() -> None:
        queue.ack(queue.get(block=False))

    return _measured(queue.put, handle, bodies)


def huey(directory: str, messages: int) -> dict[str, float]:
    """`SqliteHuey` as it comes: enqueue a task each, then dequeue and execute each."""
    from huey import SqliteHuey

    app: Any = SqliteHuey(filename=str(Path(directory) / "huey.db"), results=False)
    handled: list[str] = []

    @app.task()
    def take(body: str) -> None:
        handled.append(body)

    return _measured(take, lambda: app.execute(app.dequeue()), _bodies(messages))


def _bodies(messages: int) -> list[str]:
    import msgspec

    return [msgspec.json.encode(order(number)).decode() for number in range(messages)]


def _measured(send: Callable[[str], Any], handle: Callable[[], Any], bodies: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    for body in bodies:
        send(body)
    sent = time.perf_counter()
    for _ in bodies:
        handle()
    handled = time.perf_counter()
    return {"sent_per_s": len(bodies) / (sent - began), "handled_per_s": len(bodies) / (handled - sent)}
