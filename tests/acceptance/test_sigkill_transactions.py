"""What rides in a database transaction, on servers: real processes, killed with SIGKILL at every point of the outbox,
of handling exactly once, and of a user's own transaction, and recovered by another.

As `test_sigkill.py` (where SQLite is), but that the user's tables are judged too. A process is killed at once, so
before the next step, or some turns of its loop later, in the middle of it: also while the server commits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_sigkill import HANDLING, ONE, OUTBOX, RETRY, TWO, WITHIN, Kills, Place, all_killed

OWN = ("own.sent", "own.committed")
"""The user's own: written, with the messages, and not committed; committed."""

SHORT: Kills = {("outbox", ONE): (*OWN, *OUTBOX), ("chain", ONE): (*WITHIN, *OUTBOX)}
LONG: Kills = {
    ("outbox", ONE): (*OWN, *OUTBOX, *HANDLING),
    ("outbox", TWO): (*OWN, *OUTBOX),
    ("within", ONE): ("key.claimed", *WITHIN, *RETRY),
    ("within", TWO): ("delivery.fetched", "key.claimed", *WITHIN, *RETRY),
    ("chain", ONE): ("key.claimed", *WITHIN, *OUTBOX, *RETRY),
    ("chain", TWO): (*WITHIN, *OUTBOX),
}

_numbers = itertools.count(1)


def _on(fixture: str, fresh: str) -> Callable[[pytest.FixtureRequest], Place]:
    def on(request: pytest.FixtureRequest) -> Place:
        server = request.getfixturevalue(fixture)

        def place(_: Path, where: str) -> dict[str, str]:
            storage = getattr(server, fresh)()
            url = getattr(server, fresh)() if where == TWO else storage
            return {"url": url, "storage": storage, "database": f"{server.url()}#own{next(_numbers)}_"}

        return place

    return on


SERVERS: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "postgresql": _on("postgresql_server", "schema"),
    "mysql": _on("mariadb_server", "prefix"),
}
servers = pytest.mark.parametrize("engine", SERVERS)


@pytest.mark.server
@pytest.mark.kills
@pytest.mark.timeout(240)
@servers
async def test_a_process_killed_in_any_transaction_loses_nothing_and_doubles_nothing(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    assert not await all_killed(tmp_path, SERVERS[engine](request), SHORT, turns=(0, 3))


@pytest.mark.server
@pytest.mark.long
@pytest.mark.timeout(0)
@servers
async def test_a_process_killed_anywhere_in_any_transaction_loses_nothing_and_doubles_nothing(
    tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    assert not await all_killed(tmp_path, SERVERS[engine](request), LONG, turns=(0, 1, 2, 5, 9))


def test_a_process_is_killed_at_every_point_of_a_transaction() -> None:
    for table in (SHORT, LONG):
        assert {point for at in table.values() for point in at} >= {*OWN, *OUTBOX, *WITHIN}
