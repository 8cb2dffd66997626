"""Clients of one engine in turns: published and consumed in hundreds, and what a restart of the server does to each."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import children, machine
from ..ours import PAYLOAD, SLOTS
from ..report import RESULTS, Figure, fill, shown
from ..servers import DURABILITY, Running, running

_PATIENCE = 10.0
"""Seconds after a restart in which a client may come back by itself."""


@dataclass(frozen=True)
class Kept:
    """How a library is kept; read on PyPI."""

    licence: str
    released: str
    """Its last release."""


KEPT = {
    "rabbitmq": {
        "pika": Kept("BSD-3-Clause", "2026-08"),
        "aiormq": Kept("Apache-2.0", "2026-10"),
        "aio-pika": Kept("Apache-2.0", "2026-10"),
    },
    "redis": {
        "redis-py": Kept("MIT", "2026-07"),
        "valkey-py": Kept("MIT", "2026-10"),
        "coredis": Kept("MIT", "2026-08"),
    },
    "nats": {
        "nats-py, its JetStream layer": Kept("Apache-2.0", "2026-09"),
        "nats-py, requests": Kept("Apache-2.0", "2026-09"),
        "nats-py's connection, our lines": Kept("Apache-2.0", "2026-09"),
    },
    "postgresql": {"asyncpg": Kept("Apache-2.0", "2026-10"), "psycopg": Kept("LGPL-3.0", "2026-11")},
    "mysql": {"asyncmy": Kept("Apache-2.0", "2026-11"), "aiomysql": Kept("MIT", "2025-10")},
}
_COLUMNS = {
    "published": "published, confirmed, /s",
    "consumed": "taken and acked, /s",
    "restart": "publishes again after a restart of the server",
}


def throughput(engine: str, client: str, url: str, messages: int) -> dict[str, float]:
    """Publish and consume by hundreds, in a process of its own."""

    async def main() -> dict[str, float]:
        used = _client(engine, client)
        await used.open(url)
        batch = [b"x" * PAYLOAD] * SLOTS
        began = time.perf_counter()
        for _ in range(messages // SLOTS):
            await used.publish(batch)
        published = time.perf_counter() - began
        left = messages // SLOTS * SLOTS
        began = time.perf_counter()
        while left > 0:
            left -= await used.consume(SLOTS)
        consumed = time.perf_counter() - began
        await used.close()
        return {"published": messages / published, "consumed": messages / consumed}

    return asyncio.run(main())


def after_restart(engine: str, client: str, url: str, ready: str, restarted: str) -> dict[str, float]:
    """Publish, let the server be killed and started, and publish until that works: seconds, `_PATIENCE` at most."""

    async def main() -> dict[str, float]:
        used = _client(engine, client)
        await used.open(url)
        await used.publish([b"before"])
        Path(ready).touch()
        while not Path(restarted).exists():
            await asyncio.sleep(0.02)
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < _PATIENCE:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2.0):
                    await used.publish([b"after"])
                    break
            await asyncio.sleep(0.05)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await used.close()
        return {"restart": min(took, _PATIENCE)}

    return asyncio.run(main())


def _client(engine: str, client: str) -> Any:
    return importlib.import_module(f"benchmarks.clients.{engine}").CLIENTS[client]()


def measure(
    engine: str, directory: Path, rounds: int, messages: int, say: Callable[[str], None]
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`."""
    seen: dict[str, list[float]] = {}
    speeds = [machine.speed(directory)]
    with running(engine, directory) as server:
        for _ in range(rounds):
            for client in KEPT[engine]:
                url = server.peers()
                found = children.run("clients.measure", "throughput", **_named(engine, client, url), messages=messages)
                for what, value in (found | _restarted(server, directory, _named(engine, client, url))).items():
                    seen.setdefault(f"{client}: {what}", []).append(value)
                say(f"  {client}: {found['published']:,.0f} published, {found['consumed']:,.0f} consumed")
        speeds.append(machine.speed(directory))
    figures = [
        Figure(f"{client}: {what}", seen[f"{client}: {what}"], "s" if what == "restart" else "/s")
        for client in KEPT[engine]
        for what in _COLUMNS
    ]
    title = (
        f"Clients of {engine}: {PAYLOAD} bytes, {SLOTS} published together and confirmed, {SLOTS} taken and acked "
        f"together; medians of {rounds} interleaved rounds. {DURABILITY[engine]}."
    )
    return title, figures, speeds


def _named(engine: str, client: str, url: str) -> dict[str, str]:
    return {"engine": engine, "client": client, "url": url}


def _restarted(server: Running, directory: Path, named: dict[str, str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=directory) as fresh:
        ready, restarted = Path(fresh) / "ready", Path(fresh) / "restarted"
        places = {"ready": str(ready), "restarted": str(restarted)}
        child = children.start("clients.measure", "after_restart", **named, **places)
        try:
            while not ready.exists() and child.poll() is None:
                time.sleep(0.02)
            server.restart()
            restarted.touch()
            return children.result(child, 60)
        finally:
            child.kill()


def fill_table(document: Path, results: Path = RESULTS) -> bool:
    """Put what was measured into the document, between `clients: begin` and `clients: end`."""
    found = [(engine, results / f"clients-{engine}.json") for engine in KEPT]
    texts = [_table(engine, json.loads(path.read_text())) for engine, path in found if path.exists()]
    return bool(texts) and fill(document, "\n\n".join(texts), "clients")


def _table(engine: str, result: dict[str, Any]) -> str:
    medians = {figure["name"]: statistics.median(figure["rounds"]) for figure in result["figures"]}
    heads = ["client", *_COLUMNS.values(), "licence", "last release"]
    lines = [result["title"], "", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for client, kept in KEPT[engine].items():
        values = {what: medians[f"{client}: {what}"] for what in _COLUMNS}
        back = f"in {values['restart']:.1f} s" if values["restart"] < _PATIENCE else "not by itself"
        cells = [client, shown(values["published"]), shown(values["consumed"]), back, kept.licence, kept.released]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
