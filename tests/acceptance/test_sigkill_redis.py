"""As `test_sigkill.py`, on Redis: real processes, killed with SIGKILL at every point, and recovered by another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.servers.redis import RedisServer

CHILD = Path(__file__).with_name("sigkill_redis_child.py")
AT_ONCE = 3

HANDLING = ("key.claimed", "handler.done", "delivery.acked")
APART = ("delivery.fetched", "key.claimed", "handler.done", "key.completed", "delivery.acked")
RETRY = ("retry.publishing", "retry.published", "retry.released")
DEAD = ("dead.storing", "dead.stored", "dead.released")
REPLAY = ("replay.fetched", "replay.published", "replay.removed")
SENDER = ("half.storing", "half.stored", "work.done", "half.published", "half.removed")
CHECKER = ("check.claimed", "check.answered", "check.published")

KILLS: dict[tuple[str, str], tuple[str, ...]] = {
    # (scenario, one server or two): the points at which it is killed, each in a run of its own
    ("handle-asking", "fused"): HANDLING,
    ("handle-asking", "apart"): APART,
    ("retry", "fused"): (*HANDLING, *RETRY),
    ("replay", "fused"): (*DEAD, *REPLAY, *HANDLING),
    ("deferred", "fused"): HANDLING,
    ("checkback", "fused"): (*SENDER, *CHECKER),
}


async def child(url: str, folder: Path, scenario: str, where: str, point: str) -> tuple[int | None, Any, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CHILD), str(folder), scenario, where, point, env=os.environ | {"REDIS_URL": url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, json.loads(out) if out else {}, errors.decode()[-3000:]


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("scenario", "where"), KILLS)
async def test_a_process_killed_at_any_point_loses_nothing_and_doubles_nothing_on_redis(
    tmp_path: Path, redis_server: RedisServer, scenario: str, where: str
) -> None:
    url, one_less = redis_server.url().partition("?")[0], asyncio.Semaphore(AT_ONCE)

    async def judged(point: str) -> str:
        async with one_less:
            (folder := tmp_path / point).mkdir()
            code, said, errors = await child(url, folder, scenario, where, point)
            if code != -signal.SIGKILL:
                return f"{scenario} on {where} was not killed at {point}, but ended with {code}: {said} {errors}"
            code, said, errors = await child(url, folder, scenario, where, "-")
            ledger = (folder / "ledger").read_text()
            return (
                f"{scenario} on {where}, killed at {point}, ended with {code}: {said} {errors}\n{ledger}"
                if code
                else ""
            )

    wrong = await asyncio.gather(*(judged(point) for point in KILLS[scenario, where]))
    assert not any(wrong), "\n".join(filter(None, wrong))
