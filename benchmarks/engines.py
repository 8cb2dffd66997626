"""One engine beside its peers on the same server: sent, handled, one message alone, and a backlog's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from . import alone, backlog, children, machine
from .ours import PAYLOAD, SLOTS
from .report import Figure
from .servers import DURABILITY, Running, running

_NAMES = {"rabbitmq": "amqp://", "redis": "redis://", "nats": "nats://", "postgresql": "postgresql://"}
_NAMES["mysql"] = "mysql://"
_STORAGES = {"postgresql": "PostgreSQL", "redis": "Redis"}
_PEERS = {"faststream": "FastStream", "pgqueuer": "PgQueuer", "dramatiq": "Dramatiq"}
_MEMORY, _GROWTH = 60.0, 2.0
"""MB that a process which handles may take, and may grow by after the first tenth."""

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How an engine is measured, and what is asked of it."""

    messages: int
    """For about two seconds each of sending and handling."""
    peer: str = ""
    peer_messages: int = 0
    storages: tuple[str, ...] = ()
    """Where the keys are, where the engine holds none: what is asked is asked of the first."""
    sent: float | None = None
    """Times the peer's, at least; of tasks that each await their own, at both."""
    handled: float | None = None
    handled_per_s: float | None = None
    alone: tuple[str, ...] = ()
    """Peers whose quickest ours is held to."""
    backlog: int = 1_000_000


PLANS = {
    "rabbitmq": Plan(30_000, "faststream", 10_000, ("postgresql", "redis"), 2.5, 3, alone=("dramatiq", "faststream")),
    "redis": Plan(60_000, "faststream", 10_000, (), 4, 8, alone=("faststream",)),
    "nats": Plan(40_000, "faststream", 15_000, ("postgresql", "redis"), 1.5, 3, alone=("faststream",)),
    # As many for both: PgQueuer handles fewer a second, the more it has handled.
    "postgresql": Plan(40_000, "pgqueuer", 40_000, (), 10, 2, alone=("pgqueuer",)),
    "mysql": Plan(30_000, handled_per_s=15_000),
}
SLOWER = 1.5
"""Times the quickest peer's, that one message alone may take."""


def measure(
    engine: str, directory: Path, rounds: int, scale: float, say: Say
) -> tuple[str, list[Figure], list[dict[str, float]]]:
    """Run the rounds; see `embedded.measure`. `scale`: times the usual numbers of messages."""
    plan = PLANS[engine]
    speeds: list[dict[str, float]] = []
    with ExitStack() as stack:
        server = stack.enter_context(running(engine, directory))
        storages = {name: stack.enter_context(running(name, directory)) for name in plan.storages}
        measured = _Measured(plan, server, storages, scale, say)
        for number in range(rounds):
            speeds.append(machine.speed(directory))
            loops = speeds[-1]["python_loops_per_ms"]
            say(f"{engine}, round {number + 1} of {rounds}; {loops:,.0f} Python loops a millisecond")
            measured.one_round(directory)
        speeds.append(machine.speed(directory))
        measured.backlog()
    servers = "; ".join(DURABILITY[name] for name in (engine, *plan.storages))
    title = (
        f"{_NAMES[engine]} and peers: payloads of {PAYLOAD} bytes, {SLOTS} tasks that send one after the other and "
        f"wait for each confirm, then {SLOTS} slots that handle, late acks; medians of {rounds} interleaved rounds. "
        f"{servers}. Ours deduplicates, the peers do not. All on asyncio's own loop. The backlog: "
        f"{measured.backlog_size:,} messages."
    )
    return title, figures(engine, plan, measured.seen), speeds


class _Measured:
    """One engine's server under measurement, and what was seen."""

    def __init__(self, plan: Plan, server: Running, storages: dict[str, Running], scale: float, say: Say) -> None:
        self.seen: dict[str, list[float]] = {}
        self._plan = plan
        self._server = server
        self._storages = storages
        self._scale = scale
        self._say = say

    def one_round(self, directory: Path) -> None:
        """Ours with each storage, the peer, and all of them alone."""
        plan = self._plan
        for storage in plan.storages or ("",):
            place = self._ours(storage)
            self._keep(_ours(storage), children.run("ours", "throughput", messages=self._size(plan.messages), **place))
        if plan.peer:
            size = self._size(plan.peer_messages)
            self._keep(plan.peer, children.run(f"peer_{plan.peer}", "throughput", messages=size, **self._theirs()))
            for what in ("sent", "handled"):
                ours, theirs = (self.seen[f"{who} {what}_per_s"][-1] for who in (_ours(self._first), plan.peer))
                self._keep("ratio", {what: ours / theirs})
        self._keep("alone", alone.one_round("alone", directory, self._size(200), **self._ours(self._first)))
        for peer in plan.alone:
            self._keep(f"{peer} alone", alone.one_round(f"peer_{peer}", directory, self._size(200), **self._theirs()))
        if plan.alone:
            quickest = min(self.seen[f"{peer} alone p50"][-1] for peer in plan.alone)
            self._keep("ratio", {"alone": self.seen["alone p50"][-1] / quickest})

    def backlog(self) -> None:
        """A long run of one process that handles."""
        found = backlog.one_round(self.backlog_size, self._say, **self._ours(self._first))
        self._keep("backlog", found)

    @property
    def backlog_size(self) -> int:
        """Messages of the long run."""
        return self._size(self._plan.backlog)

    @property
    def _first(self) -> str:
        return next(iter(self._plan.storages), "")

    def _ours(self, storage: str) -> dict[str, str]:
        """A place that nobody has used, and one for its keys."""
        keys = {"storage": self._storages[storage].fresh()} if storage else {}
        return {"url": self._server.fresh()} | keys

    def _theirs(self) -> dict[str, str]:
        return {"engine": self._server.engine, "url": self._server.peers()}

    def _size(self, usual: int) -> int:
        return max(100, int(usual * self._scale))

    def _keep(self, who: str, figures: dict[str, float]) -> None:
        if who != "ratio":
            self._say(f"  {who}: " + ", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
        for name, value in figures.items():
            self.seen.setdefault(f"{who} {name}", []).append(value)


def _ours(storage: str) -> str:
    return f"ours, keys on {storage}" if storage else "ours"


def figures(engine: str, plan: Plan, seen: Mapping[str, list[float]]) -> list[Figure]:
    """What was seen, beside what is asked."""
    name, peer = _NAMES[engine], _PEERS.get(plan.peer, "")
    found: list[Figure] = []
    if peer:
        found += [
            Figure(f"{name}, sent, over {peer}", seen["ratio sent"], "×", at_least=plan.sent),
            Figure(f"{name}, handled, over {peer}", seen["ratio handled"], "×", at_least=plan.handled),
        ]
    for storage in plan.storages or ("",):
        ours = _ours(storage)
        where = f"{name}, keys on {_STORAGES[storage]}" if storage else name
        asked = plan.handled_per_s
        found += [
            Figure(f"{where}, sent", seen[f"{ours} sent_per_s"], "/s"),
            Figure(f"{where}, handled", seen[f"{ours} handled_per_s"], "/s", at_least=asked),
            Figure(f"{where}, this process's processor time to send one", seen[f"{ours} send_cpu_us"], "µs"),
            Figure(f"{where}, the same to handle one", seen[f"{ours} handle_cpu_us"], "µs"),
        ]
    if peer:
        found += [
            Figure(f"{peer}, sent", seen[f"{plan.peer} sent_per_s"], "/s"),
            Figure(f"{peer}, handled", seen[f"{plan.peer} handled_per_s"], "/s"),
        ]
    return found + _alone(name, plan, seen) + _backlog(name, plan, seen)


def _alone(name: str, plan: Plan, seen: Mapping[str, list[float]]) -> list[Figure]:
    figures: list[Figure] = []
    if plan.alone:
        held_to = f"{name}, sent alone and handled, median, over the quickest peer's"
        figures.append(Figure(held_to, seen["ratio alone"], "×", at_most=SLOWER))
    for who, key in ((name, "alone"), *((_PEERS[peer], f"{peer} alone") for peer in plan.alone)):
        figures += [
            Figure(f"{who}, sent alone and handled, median", seen[f"{key} p50"], "ms"),
            Figure(f"{who}, the same, 99th percentile", seen[f"{key} p99"], "ms"),
        ]
    return figures


def _backlog(name: str, plan: Plan, seen: Mapping[str, list[float]]) -> list[Figure]:
    return [
        Figure(f"{name}, memory of a process that handles a long backlog", seen["backlog peak"], "MB", at_most=_MEMORY),
        Figure(f"{name}, its growth after the first tenth", seen["backlog grown"], "MB", at_most=_GROWTH),
        Figure(f"{name}, the last tenth's rate over the first's", seen["backlog ratio"], "×"),
    ]
