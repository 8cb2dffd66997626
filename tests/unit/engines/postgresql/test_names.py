"""Any text goes into a column and comes out as it was; no two collide."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easybus import Bus
from easybus.engines.contract import Binding, DeadLetter, DeclareQueue, DeclareTopic, Publication
from easybus.engines.postgresql.engine import PostgresqlEngine
from easybus.engines.postgresql.names import escape, indexed, unescape

from .conftest import Opener

TEXT = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\0\\0u\ud800\udfff")), max_size=40)


@given(TEXT)
@example("\\0\0\\\\u0000\ud800\\ud800")
def test_escaped_text_can_be_held_and_comes_back(text: str) -> None:
    escaped = escape(text)
    assert "\0" not in escaped
    escaped.encode()
    assert unescape(escaped) == text


@given(TEXT, TEXT, st.integers(1, 40))
@example("\\h", "\\h", 40)
def test_what_stands_in_an_index_is_short_and_of_one_text_only(one: str, other: str, times: int) -> None:
    first, second = indexed(one * times), indexed(other * times)
    assert (first == second) == (one * times == other * times)
    assert len(first.encode()) <= 500


async def test_names_with_nul_and_backslash_are_kept_apart(engine: PostgresqlEngine) -> None:
    names = ["a\0b", "a\\0b", "a\\\\0b", "\0", "\\"]
    await engine.driver.declare([DeclareQueue(name) for name in names] + [DeclareTopic(name) for name in names])
    await engine.driver.declare([Binding(name, name, name) for name in names])
    for name in names:
        await engine.driver.publish([Publication(True, name, name.encode(), name)])
    for name in names:
        assert [one.body for one in await engine.driver.fetch(name, 9, 0.0, 30.0)] == [name.encode()]
    assert [one.name for one in await engine.driver.queues()] == sorted(names)


async def test_a_pattern_and_an_id_may_be_longer_than_an_index_entry(engine: PostgresqlEngine) -> None:
    from easybus.engines.contract import Claim, Claimed, Half

    long = "é" * 5000
    await engine.driver.declare([DeclareQueue("q"), DeclareTopic("t"), Binding("t", "q", long)])
    assert await engine.driver.publish([Publication(True, "t", b"1", long), Publication(True, "t", b"2", "é")]) == [
        1,
        0,
    ]
    (claimed,) = await engine.idempotency.claim([Claim("q", long, b"d", 60.0)])
    assert isinstance(claimed, Claimed)
    assert await engine.idempotency.lookup("q", long) == "claimed"
    key = await engine.dead_letters.store(DeadLetter(queue="q", message_id=long, body=b"1", reason="r\0\ud800"))
    kept = await engine.dead_letters.get("q", key)
    assert kept is not None
    assert (kept.message_id, kept.reason) == (long, "r\0\ud800")
    await engine.transactions.store(Half(id=long, service="s", topic="t", body=b"1"), 0.0)
    assert [half.id for half in await engine.transactions.claim_due([("s", "t")], 1, 60.0)] == [long]


HARD = ["o'brien", "back\\slash'", 'two""quotes', "shop$1 {fence} %s"]


@pytest.mark.parametrize("name", HARD)
async def test_a_letter_is_stored_and_replayed_whatever_the_schema_and_the_prefix_are_called(
    name: str, url: str, opened: Opener
) -> None:
    letters = (await opened(f"{url}{quote(name)}&prefix={quote(name)}")).dead_letters
    key = await letters.store(DeadLetter(queue="jobs", message_id="1", body=b"1", reason="bad"))
    assert await letters.mark_for_retry("jobs", [key]) == 1
    (found,) = await letters.fetch("jobs", 9, 60.0)
    assert (found.body, found.reason) == (b"1", "bad")
    assert await letters.remove("jobs", key, found.fence)


@pytest.mark.parametrize("name", HARD)
async def test_a_message_is_handled_exactly_once_whatever_the_schema_is_called(name: str, url: str) -> None:
    bus = Bus(f"{url}{quote(name)}&statement_cache_size=0")
    jobs, handled = bus.queue("jobs", int), asyncio.Event()

    @jobs.handler(within=asyncpg.Connection)
    async def handle(_: int, connection: asyncpg.Connection) -> None:
        handled.set()

    async with bus.handling():
        message = await jobs.send(1)
        await asyncio.wait_for(handled.wait(), 10)
    async with bus:
        storage = bus.opened.storage.idempotency
        assert storage is not None
        assert await storage.lookup("jobs", message.id) == "done"
