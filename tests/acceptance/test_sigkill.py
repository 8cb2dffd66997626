"""Real processes on every engine, killed with SIGKILL at every point, and recovered by another.

The first process kills itself where it first gets to the point: at once, so before the next step, or some turns of its
loop later, when that step's request is on its way and its answer unread. The second one recovers. The judge is the
ledger, which is on the disk line by line, outside every engine.

Each test runs many such pairs side by side on one server, each on tables or names of its own. make test kills at every
point: once at it and once after it on SQLite, in turn one or the other on servers; the long form kills in every
scenario, and a various number of turns later.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.acceptance import sigkill_child
from tests.acceptance.sigkill_child import Life, live

from easybus import points

AT_ONCE = 6
_CLIENTS = ("asyncpg", "asyncmy", "redis.asyncio", "pika", "nats")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([sigkill_child.__name__, *_CLIENTS])

HANDLING = ("key.claimed", "handler.done", "delivery.acked")
APART = ("delivery.fetched", "key.claimed", "handler.done", "key.completed", "delivery.acked")
RETRY = ("retry.publishing", "retry.published", "retry.released")
DEAD = ("dead.storing", "dead.stored", "dead.released")
REPLAY = ("replay.fetched", "replay.published", "replay.removed")
SENDER = ("half.storing", "half.stored", "work.done", "half.published", "half.removed")
CHECKER = ("check.claimed", "check.answered", "check.published")
OUTBOX = ("outbox.claimed", "outbox.published", "outbox.deleted")
WITHIN = ("within.effect", "within.done", "within.committed")

ONE = "one place for all"
TWO = "keys apart"
Kills = dict[tuple[str, str], tuple[str, ...]]
"""(scenario, where messages and keys are): the points at which it is killed, each in a run of its own."""

SHORT: Kills = {
    ("handle-asking", TWO): APART,
    ("retry", ONE): RETRY,
    ("replay", ONE): (*DEAD, *REPLAY),
    ("checkback", ONE): (*SENDER, *CHECKER),
}
SHORT_DATABASE: Kills = {("outbox", ONE): OUTBOX, ("within", ONE): WITHIN}
LONG: Kills = {
    ("handle", ONE): HANDLING,
    ("handle", TWO): APART,
    ("handle-asking", ONE): HANDLING,
    ("handle-asking", TWO): APART,
    ("slow", ONE): HANDLING,
    ("retry", ONE): (*HANDLING, *RETRY),
    ("retry", TWO): RETRY,
    ("dead", ONE): ("key.claimed", *DEAD),
    ("dead", TWO): DEAD,
    ("replay", ONE): (*DEAD, *REPLAY, *HANDLING),
    ("replay", TWO): REPLAY,
    ("conflict", ONE): DEAD,
    ("deferred", ONE): HANDLING,
    ("checkback", ONE): (*SENDER, *CHECKER, *HANDLING),
    ("checkback", TWO): (*SENDER, *CHECKER),
}
LONG_DATABASE: Kills = {
    ("outbox", ONE): (*OUTBOX, *HANDLING),
    ("outbox", TWO): OUTBOX,
    ("within", ONE): ("key.claimed", *WITHIN, *RETRY),
    ("within", TWO): ("delivery.fetched", *WITHIN),
}

Place = Callable[[Path, str], dict[str, str]]
"""What a life is told of where its messages and its keys are: fresh ones."""
_numbers = itertools.count(1)


def _sqlite(_: pytest.FixtureRequest) -> Place:
    def place(folder: Path, where: str) -> dict[str, str]:
        messages, keys = folder / "bus.db", folder / ("storage.db" if where == TWO else "bus.db")
        return {"url": f"sqlite:///{messages}", "storage": f"sqlite:///{keys}", "database": str(keys)}

    return place


def _one_server(fixture: str, fresh: str) -> Callable[[pytest.FixtureRequest], Place]:
    def on(request: pytest.FixtureRequest) -> Place:
        url = getattr(request.getfixturevalue(fixture), fresh)

        def place(_: Path, where: str) -> dict[str, str]:
            messages = url()
            return {"url": messages, "storage": url() if where == TWO else messages}

        return place

    return on


def _with_postgresql(fixture: str, url: Callable[..., str]) -> Callable[[pytest.FixtureRequest], Place]:
    def on(request: pytest.FixtureRequest) -> Place:
        server, postgresql = request.getfixturevalue(fixture), request.getfixturevalue("postgresql_server")

        def place(_: Path, where: str) -> dict[str, str]:
            return {"url": url(server), "storage": postgresql.schema(), "suffix": f"-{next(_numbers)}"}

        return place

    return on


ENGINES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "sqlite": _sqlite,
    "postgresql": _one_server("postgresql_server", "schema"),
    "mysql": _one_server("mariadb_server", "prefix"),
    "redis": _one_server("redis_server", "url"),
    "rabbitmq": _with_postgresql("rabbitmq_server", lambda server: server.url(settle=0)),
    "nats": _with_postgresql("nats_server", lambda server: server.prefix()),
}
engines = pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[pytest.mark.server] if name != "sqlite" else []) for name in ENGINES]
)


def kills(engine: str, one_or_two: Kills, database: Kills) -> Kills:
    """RabbitMQ and NATS hold no keys: what is not apart there is on the same two servers."""
    table = one_or_two | (database if engine == "sqlite" else {})
    if engine not in ("rabbitmq", "nats"):
        return table
    found: Kills = {}
    for (scenario, _), at in table.items():
        found[scenario, TWO] = tuple(dict.fromkeys((*found.get((scenario, TWO), ()), *at)))
    return found


def second() -> float:
    """How long a scenario's second is, by how many wait for each of the machine's cores: leases of ten must hold."""
    waiting = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return 0.06 * min(max(waiting, 1.5), 10.0)


async def lived(life: Life) -> int:
    """The exit code of a process that lived so: negative, if a signal ended it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    process = _CONTEXT.Process(target=live, args=(life,))
    process.start()
    loop.add_reader(process.sentinel, ended.set)
    try:
        async with asyncio.timeout(60 + 300 * life.second):
            await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
    assert code is not None
    return code


def told(folder: Path) -> str:
    """What the processes have left behind."""
    parts = [folder / name for name in ("verdict", "ledger", "errors")]
    return "\n".join(part.read_text()[-3000:] for part in parts if part.exists())


async def killed_and_recovered(life: Life, point: str, turns: int) -> str:
    """What is wrong, or nothing."""
    what = f"{life.scenario}, killed {turns} turns after {point}, in {life.folder}"
    code = await lived(Life(**life.__dict__ | {"point": point, "turns": turns}))
    if code != -signal.SIGKILL:
        return f"{what}, was not killed but ended with {code}:\n{told(life.folder)}"
    code = await lived(life)
    return f"{what}, ended with {code}:\n{told(life.folder)}" if code else ""


def prepared(folder: Path, place: Place, scenario: str, where: str) -> Life:
    folder.mkdir()
    life = Life(folder=folder, scenario=scenario, second=second(), **place(folder, where))
    if life.database:
        sigkill_child.SCENARIOS[scenario]().prepare(life.database)
    return life


async def all_killed(folder: Path, place: Place, table: Kills, turns: tuple[int, ...], *, in_turn: bool = False) -> str:
    """What is wrong, or nothing. `in_turn`: at each point one of `turns`, and the next at the next."""
    one_less = asyncio.Semaphore(AT_ONCE)

    async def judged(scenario: str, where: str, point: str, after: int) -> str:
        async with one_less:
            life = prepared(folder / f"{scenario}-{where}-{point}-{after}".replace(" ", "-"), place, scenario, where)
            return await killed_and_recovered(life, point, after)

    points_of = [(*run, point) for run, at in table.items() for point in at]
    cycle = itertools.cycle(turns)
    wrong = await asyncio.gather(
        *(judged(*one, after) for one in points_of for after in ((next(cycle),) if in_turn else turns))
    )
    return "\n\n".join(filter(None, wrong))


@pytest.mark.kills
@pytest.mark.timeout(600)
@engines
async def test_a_process_killed_at_any_point_loses_nothing_and_doubles_nothing(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    table = kills(engine, SHORT, SHORT_DATABASE)
    assert not await all_killed(tmp_path, ENGINES[engine](request), table, turns=(0, 3), in_turn=engine != "sqlite")


@pytest.mark.long
@pytest.mark.timeout(0)
@engines
async def test_a_process_killed_anywhere_in_any_scenario_loses_nothing_and_doubles_nothing(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    assert not await all_killed(
        tmp_path, ENGINES[engine](request), kills(engine, LONG, LONG_DATABASE), turns=(0, 1, 2, 5, 9)
    )


@pytest.mark.kills
@pytest.mark.timeout(300)
@engines
async def test_a_message_that_kills_its_processes_is_a_dead_letter_in_the_end(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    place = ENGINES[engine](request)

    async def poisoned(scenario: str) -> None:
        life, codes = prepared(tmp_path / scenario, place, scenario, TWO if engine in ("rabbitmq", "nats") else ONE), []
        while not codes or (codes[-1] == -signal.SIGKILL and len(codes) < 8):
            codes.append(await lived(life))
        assert codes[-1] == 0, (codes, told(life.folder))
        assert len(codes) >= 3, "it is tried again before it is taken for poison"

    await asyncio.gather(poisoned("poison"), poisoned("poison-at-once"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_is_killed_at_every_point(engine: str) -> None:
    databases = (
        set() if engine == "sqlite" else {*OUTBOX, *WITHIN}
    )  # SQLite's; others' are test_sigkill_transactions.py
    for table in (kills(engine, SHORT, SHORT_DATABASE), kills(engine, LONG, LONG_DATABASE)):
        assert {point for at in table.values() for point in at} == set(points.POINTS) - databases
