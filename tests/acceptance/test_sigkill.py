"""Real processes on SQLite files, killed with SIGKILL at every point: before the next step, so after the last one.

The first process kills itself where it first gets to the point; a second one recovers, and the judge is the ledger,
which is on the disk line by line. A process that is killed at the next point was killed right after this one's step.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from easybus import points

CHILD = Path(__file__).with_name("sigkill_child.py")
AT_ONCE = 3

HANDLING = ("key.claimed", "handler.done", "delivery.acked")
APART = ("delivery.fetched", "key.claimed", "handler.done", "key.completed", "delivery.acked")
RETRY = ("retry.publishing", "retry.published", "retry.released")
DEAD = ("dead.storing", "dead.stored", "dead.released")
REPLAY = ("replay.fetched", "replay.published", "replay.removed")
SENDER = ("half.storing", "half.stored", "work.done", "half.published", "half.removed")
CHECKER = ("check.claimed", "check.answered", "check.published")
OUTBOX = ("outbox.claimed", "outbox.published", "outbox.deleted")
WITHIN = ("within.effect", "within.done", "within.committed")

KILLS: dict[tuple[str, str], tuple[str, ...]] = {
    # (scenario, one file or two): the points at which it is killed, each in a run of its own
    ("handle", "fused"): HANDLING,
    ("handle", "apart"): APART,
    ("handle-asking", "fused"): HANDLING,
    ("handle-asking", "apart"): APART,
    ("slow", "fused"): HANDLING,
    ("retry", "fused"): (*HANDLING, *RETRY),
    ("retry", "apart"): RETRY,
    ("dead", "fused"): ("key.claimed", *DEAD),
    ("dead", "apart"): DEAD,
    ("replay", "fused"): (*DEAD, *REPLAY, *HANDLING),
    ("replay", "apart"): REPLAY,
    ("conflict", "fused"): DEAD,
    ("deferred", "fused"): HANDLING,
    ("checkback", "fused"): (*SENDER, *CHECKER, *HANDLING),
    ("checkback", "apart"): (*SENDER, *CHECKER),
    ("outbox", "fused"): (*OUTBOX, *HANDLING),
    ("outbox", "apart"): OUTBOX,
    ("within", "fused"): ("key.claimed", *WITHIN, *RETRY),
    ("within", "apart"): ("delivery.fetched", *WITHIN),
}


async def child(folder: Path, scenario: str, files: str, point: str) -> tuple[int | None, dict[str, Any], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(folder), scenario, files, point,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(out) if out else {}, errors.decode()[-3000:]


async def killed_and_recovered(folder: Path, scenario: str, files: str, point: str) -> str:
    """What is wrong, or nothing."""
    code, said, errors = await child(folder, scenario, files, point)
    if code != -signal.SIGKILL:
        return f"{scenario} on {files} was not killed at {point}, but ended with {code}: {said} {errors}"
    code, said, errors = await child(folder, scenario, files, "-")
    if code != 0:
        ledger = (folder / "ledger").read_text()
        return f"{scenario} on {files}, killed at {point}, ended with {code}: {said} {errors}\n{ledger}"
    return ""


def prepare(folder: Path, scenario: str, files: str) -> None:
    folder.mkdir()
    table = {"outbox": "work", "within": "effect"}.get(scenario)
    if table is not None:
        import apsw

        connection = apsw.Connection(str(folder / ("storage.db" if files == "apart" else "bus.db")))
        connection.execute(f"CREATE TABLE {table} (id TEXT)")
        connection.close()


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("scenario", "files"), KILLS)
async def test_a_process_killed_at_any_point_loses_nothing_and_doubles_nothing(
    tmp_path: Path, scenario: str, files: str
) -> None:
    one_less = asyncio.Semaphore(AT_ONCE)

    async def judged(point: str) -> str:
        async with one_less:
            prepare(folder := tmp_path / point, scenario, files)
            return await killed_and_recovered(folder, scenario, files, point)

    wrong = await asyncio.gather(*(judged(point) for point in KILLS[scenario, files]))
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", ["poison", "poison-at-once"])
async def test_a_message_that_kills_its_processes_is_a_dead_letter_in_the_end(tmp_path: Path, scenario: str) -> None:
    codes = []
    prepare(folder := tmp_path / scenario, scenario, "fused")
    said: dict[str, Any] = {}
    while not codes or (codes[-1] == -signal.SIGKILL and len(codes) < 8):
        code, said, _ = await child(folder, scenario, "fused", "-")
        codes.append(code)
    assert codes[-1] == 0, (codes, said, (folder / "ledger").read_text())
    assert len(codes) >= 3, "it is tried again before it is taken for poison"


def test_a_process_is_killed_at_every_point() -> None:
    assert {point for kills in KILLS.values() for point in kills} == set(points.POINTS)
