"""The relay: order within a transaction, failures, refusals, lapsed leases, and its three points."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import threading
from typing import Any

import pytest
from msgspec.structs import replace

from easybus import points
from easybus.connection import Publisher
from easybus.engines.contract import OutboxRow, Publication, held_up
from easybus.errors import TooLarge, Unavailable, Unroutable
from easybus.message import Message
from easybus.sending.relay import Relay


class Rows:
    """An outbox in memory, as the contract says; `commit` is what a caller's transaction does."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.rows: dict[str, OutboxRow] = {}
        self.due: dict[str, float] = {}
        self.parked: set[str] = set()
        self.claims: list[int] = []
        self.deletes = 0
        self.down = False
        self.lose_deletes = 0
        self.waits: list[float] = []
        self._numbers = itertools.count(1)

    def commit(self, transaction: str, *ids: str, topic: str = "orders", **fields: Any) -> None:
        for position, name in enumerate(ids):
            body = Message(id=name, payload=b"1").to_bytes()
            row = OutboxRow(
                id=str(next(self._numbers)),
                transaction=transaction,
                position=position,
                publication=Publication(True, topic, body, dedupe_id=name, **fields),
            )
            self.rows[row.id] = row
        self.due[transaction] = 0.0

    async def claim(self, service: str, limit: int, lease: float) -> list[OutboxRow]:
        if self.down:
            raise Unavailable("scripted")
        now = self.clock.time()
        token = f"token-{len(self.claims)}"
        taken: list[OutboxRow] = []
        for transaction, due in self.due.items():
            rows = [row for row in self.rows.values() if row.transaction == transaction]
            if rows and due <= now and transaction not in self.parked and len(taken) + len(rows) <= limit:
                self.due[transaction] = now + lease
                for row in rows:
                    row.token = token
                taken += [replace(row) for row in rows]
        self.claims.append(len(taken))
        return taken

    async def delete(self, rows: Any) -> int:
        self.deletes += 1
        there = [row for row, token in rows if row in self.rows and self.rows[row].token == token]
        for row in there:
            del self.rows[row]
        if self.lose_deletes:
            self.lose_deletes -= 1
            raise Unavailable("scripted")
        return len(there)

    def _held(self, transaction: str, token: str) -> list[OutboxRow]:
        return [row for row in self.rows.values() if row.transaction == transaction and row.token == token]

    async def release(self, transaction: str, token: str, delay: float, error: str = "") -> None:
        for row in self._held(transaction, token):
            row.token = ""
            row.error = error
            row.failures += bool(error)
            self.due[transaction] = self.clock.time() + delay

    async def park(self, transaction: str, token: str, error: str) -> None:
        for row in self._held(transaction, token):
            row.error = error
            self.parked.add(transaction)

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        moved = asyncio.get_running_loop().create_future()
        self.clock.call_later(seconds, lambda: moved.done() or moved.set_result(None))
        await moved


class Broker:
    """A driver that keeps the order of what it took, and refuses or loses by id."""

    def __init__(self, caps: Any) -> None:
        self.caps = caps
        self.seen: list[str] = []
        self.batches: list[list[str]] = []
        self.fail: dict[str, list[Exception]] = {}
        self.lose: set[str] = set()
        self.down = False
        self.before: Any = None

    async def publish(self, batch: Any) -> list[Any]:
        if self.before is not None:
            await self.before()
        if self.down:
            raise Unavailable("scripted: the broker is down")
        self.batches.append([publication.dedupe_id for publication in batch])
        results: list[Any] = []
        for publication in batch:
            name = publication.dedupe_id
            if results and held_up(publication, results[-1]):
                results.append(results[-1])
                continue
            if self.fail.get(name):
                results.append(self.fail[name].pop(0))
                continue
            self.seen.append(name)
            lost = name in self.lose
            self.lose.discard(name)
            results.append(Unavailable("scripted: the confirm is lost") if lost else 1)
        return results


class Shop:
    def __init__(self, world: Any) -> None:
        self.clock = world.clock
        self.advance = world.advance
        self.world = world
        self.rows = Rows(self.clock)
        self.broker = Broker(dataclasses.replace(world.engine.driver.caps, unbroken=False))
        self.relay = self.another()

    def another(self) -> Relay:
        return Relay(
            service="shop",
            outbox=self.rows,  # type: ignore[arg-type]
            publisher=Publisher(self.broker, self.clock),  # type: ignore[arg-type]
            clock=self.clock,
            logger=logging.getLogger("easybus"),
            lease=10.0,
        )


@pytest.fixture
def shop(world: Any) -> Shop:
    return Shop(world)


async def test_committed_rows_are_published_in_their_order_and_deleted(shop: Shop) -> None:
    reached: list[str] = []

    async def hook(name: str) -> None:
        reached.append(name)

    points.hook = hook
    shop.rows.commit("A", "a1", "a2", "a3")
    assert await shop.relay.relay_due() == 3
    assert shop.broker.seen == ["a1", "a2", "a3"]
    assert shop.rows.rows == {}
    assert reached == ["outbox.claimed", *["outbox.published", "outbox.deleted"] * 3]
    assert await shop.relay.relay_due() == 0


async def test_a_transactions_next_row_enters_a_batch_only_after_the_one_before_is_confirmed(shop: Shop) -> None:
    for transaction in "ABC":
        shop.rows.commit(transaction, *(f"{transaction}{n}" for n in range(3)))
    await shop.relay.relay_due()
    assert shop.broker.batches == [["A0", "B0", "C0"], ["A1", "B1", "C1"], ["A2", "B2", "C2"]]


async def test_different_transactions_are_published_and_deleted_together(shop: Shop) -> None:
    for number in range(300):
        shop.rows.commit(f"t{number}", f"m{number}")
    assert await shop.relay.relay_due() == 300
    assert len(shop.broker.batches) == 1
    assert shop.rows.deletes == 1


async def test_to_an_unbroken_engine_a_transactions_rows_go_together_and_share_the_round(shop: Shop) -> None:
    shop.broker.caps = dataclasses.replace(shop.broker.caps, unbroken=True)
    shop.rows.commit("A", *(f"A{n}" for n in range(300)))
    shop.rows.commit("B", "B0", "B1")
    assert await shop.relay.relay_due() == 302
    assert shop.broker.batches == [
        [*(f"A{n}" for n in range(250)), "B0", "B1"],
        [f"A{n}" for n in range(250, 300)],
    ]
    assert shop.rows.deletes == 2


async def test_behind_a_refused_row_nothing_of_its_transaction_is_published(shop: Shop) -> None:
    shop.broker.caps = dataclasses.replace(shop.broker.caps, unbroken=True)
    shop.rows.commit("A", "a1", "a2", "a3")
    shop.rows.commit("B", "b1", "b2")
    shop.broker.fail["a2"] = [TooLarge("too large")]
    assert await shop.relay.relay_due() == 3
    assert shop.broker.seen == ["a1", "b1", "b2"]
    assert shop.rows.parked == {"A"}
    shop.rows.parked.clear()
    await shop.advance(11)
    assert await shop.relay.relay_due() == 2
    assert shop.broker.seen == ["a1", "b1", "b2", "a2", "a3"]


async def test_a_delayed_topic_send_keeps_behind_a_refused_row_too(shop: Shop) -> None:
    shop.broker.caps = dataclasses.replace(shop.broker.caps, unbroken=True, delays_topics=False)
    shop.rows.commit("A", "a1", "a2", "a3")
    first, second, _ = shop.rows.rows.values()
    second.publication = replace(second.publication, delay=5.0)
    shop.broker.fail["a1"] = [TooLarge("too large")]
    assert await shop.relay.relay_due() == 0
    assert shop.broker.seen == []
    assert first.error
    assert shop.rows.parked == {"A"}


async def test_a_batch_that_may_be_there_in_part_is_published_again_from_its_first_row(shop: Shop) -> None:
    shop.broker.caps = dataclasses.replace(shop.broker.caps, unbroken=True)
    shop.rows.commit("A", "a1", "a2", "a3")

    async def lost() -> None:
        shop.broker.before = None
        shop.broker.seen.append("a1")  # and the rest of the batch is not
        raise Unavailable("scripted: the reply is lost")

    shop.broker.before = lost
    assert await shop.relay.relay_due() == 0
    assert [row.failures for row in shop.rows.rows.values()] == [1, 1, 1]
    await shop.advance(1)
    assert await shop.relay.relay_due() == 3
    assert shop.broker.seen == ["a1", "a1", "a2", "a3"]


async def test_a_lease_is_short_and_longer_where_publishing_is_slow(shop: Shop) -> None:
    leases: list[float] = []
    claim = shop.rows.claim

    async def asked(service: str, limit: int, lease: float) -> list[OutboxRow]:
        leases.append(lease)
        return await claim(service, limit, lease)

    shop.rows.claim = asked  # type: ignore[method-assign]
    relay = Relay(
        service="shop",
        outbox=shop.rows,  # type: ignore[arg-type]
        publisher=Publisher(shop.broker, shop.clock),  # type: ignore[arg-type]
        clock=shop.clock,
        logger=logging.getLogger("easybus"),
    )
    shop.rows.commit("A", "a1")
    assert await relay.relay_due() == 1

    async def slow() -> None:
        await shop.advance(0.7)

    shop.broker.before = slow
    shop.rows.commit("B", "b1")
    await relay.relay_due()
    shop.rows.commit("C", "c1")
    await relay.relay_due()
    assert leases[0] == leases[1] == 1.0
    assert leases[-1] == pytest.approx(3.5)
    assert shop.broker.seen == ["a1", "b1", "c1"]


async def test_a_long_transaction_keeps_no_other_waiting(shop: Shop) -> None:
    shop.rows.commit("long", *(f"l{n}" for n in range(10)))

    async def meanwhile() -> None:
        if len(shop.broker.seen) == 2:
            shop.rows.commit("short", "s0")

    shop.broker.before = meanwhile
    await shop.relay.relay_due()
    assert shop.broker.seen.index("s0") < shop.broker.seen.index("l9")


async def test_an_unavailable_publish_holds_the_rest_of_its_transaction_behind_one_due_time(shop: Shop) -> None:
    shop.rows.commit("A", "a1", "a2", "a3")
    shop.rows.commit("B", "b1", "b2")
    shop.broker.fail["a2"] = [Unavailable("no")] * 2
    assert await shop.relay.relay_due() == 3
    assert shop.broker.seen == ["a1", "b1", "b2"]
    assert await shop.relay.relay_due() == 0
    await shop.advance(0.11)
    assert await shop.relay.relay_due() == 0
    await shop.advance(0.11)
    assert await shop.relay.relay_due() == 0
    await shop.advance(0.1)
    assert await shop.relay.relay_due() == 2
    assert shop.broker.seen == ["a1", "b1", "b2", "a2", "a3"]


async def test_a_lost_confirm_is_published_again_and_reorders_nothing(shop: Shop) -> None:
    shop.rows.commit("A", "a1", "a2")
    shop.broker.lose.add("a1")
    await shop.relay.relay_due()
    await shop.advance(1)
    await shop.relay.relay_due()
    assert shop.broker.seen == ["a1", "a1", "a2"]


@pytest.mark.parametrize("error", ["refused", "unroutable"])
async def test_a_refused_row_parks_its_transaction_with_the_error_and_says_it_once(
    shop: Shop, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    shop.rows.commit("A", "a1", "a2")
    shop.rows.commit("B", "b1")
    shop.broker.fail["a1"] = [TooLarge("too large") if error == "refused" else Unroutable("no queue")]
    assert await shop.relay.relay_due() == 1
    assert shop.rows.parked == {"A"}
    assert {row.error.split(":")[0] for row in shop.rows.rows.values()} <= {"TooLarge", "Unroutable"}
    await shop.advance(3600)
    assert await shop.relay.relay_due() == 0
    assert shop.broker.seen == ["b1"]
    assert len(caplog.records) == 1
    assert "a1" in caplog.text
    shop.rows.parked.clear()
    assert await shop.relay.relay_due() == 2
    assert shop.broker.seen == ["b1", "a1", "a2"]


async def test_the_text_of_a_failure_is_kept_as_text_that_every_outbox_takes(shop: Shop) -> None:
    shop.rows.commit("A", "a1")
    shop.rows.commit("B", "b1")
    shop.broker.fail = {"a1": [TooLarge("caf\udce9")], "b1": [Unavailable("caf\udce9")]}
    await shop.relay.relay_due()
    assert sorted(row.error for row in shop.rows.rows.values()) == ["TooLarge: caf\\udce9", "Unavailable: caf\\udce9"]


@pytest.mark.parametrize(
    ("point", "seen"),
    [
        ("outbox.claimed", ["a1", "a2"]),
        ("outbox.published", ["a1", "a1", "a2"]),
        ("outbox.deleted", ["a1", "a2"]),
    ],
)
async def test_a_relay_that_dies_loses_and_reorders_nothing(shop: Shop, point: str, seen: list[str]) -> None:
    shop.rows.commit("A", "a1", "a2")
    shop.world.die_at(point)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - `Died` is the conftest's
        await shop.relay.relay_due()
    assert type(caught.value).__name__ == "Died"
    points.hook = None
    other = shop.another()
    assert await other.relay_due() == 0
    await shop.advance(9.5)
    assert await other.relay_due() == 0
    await shop.advance(0.6)
    await other.relay_due()
    assert shop.broker.seen == seen
    assert shop.rows.rows == {}


async def test_a_lapsed_lease_lets_another_relay_send_copies_and_never_reorders(shop: Shop) -> None:
    shop.rows.commit("A", "a1", "a2", "a3")
    other = shop.another()

    async def slow() -> None:
        shop.broker.before = None
        await shop.advance(31)
        assert await other.relay_due() == 3

    shop.broker.before = slow
    assert await shop.relay.relay_due() == 0
    assert shop.broker.seen == ["a1", "a2", "a3", "a1"]
    assert shop.rows.rows == {}


async def test_a_relay_stops_at_the_first_delete_that_changes_nothing(shop: Shop) -> None:
    """The other relay claims in the middle of a publish and is still at work: nothing more is sent by the first."""
    shop.rows.commit("A", "a1", "a2", "a3")
    claimed: list[OutboxRow] = []

    async def slow() -> None:
        shop.broker.before = None
        shop.rows.due["A"] = 0.0  # by the server's clock; the relay's own stands still
        claimed.extend(await shop.rows.claim("shop", 10, 30))

    shop.broker.before = slow
    assert await shop.relay.relay_due() == 0
    assert shop.broker.seen == ["a1"]
    assert [row.token for row in shop.rows.rows.values()] == [claimed[0].token] * 3
    assert await shop.relay.relay_due() == 0


async def test_rows_whose_lease_is_half_over_are_given_back_before_another_may_take_them(shop: Shop) -> None:
    shop.rows.commit("A", "a1", "a2")

    async def slow() -> None:
        shop.broker.before = None
        await shop.advance(6)

    shop.broker.before = slow
    assert await shop.relay.relay_due() == 1
    assert shop.broker.seen == ["a1"]
    assert await shop.another().relay_due() == 1
    assert shop.broker.seen == ["a1", "a2"]


async def test_a_lost_reply_of_a_delete_loses_nothing(shop: Shop) -> None:
    shop.rows.commit("A", "a1", "a2")
    shop.rows.lose_deletes = 1
    with pytest.raises(Unavailable):
        await shop.relay.relay_due()
    await shop.advance(31)
    assert await shop.relay.relay_due() == 1
    assert shop.broker.seen == ["a1", "a2"]


# ------------------------------------------------------------------------------------------------------------ the loop


async def test_a_wake_publishes_at_once_and_polling_finds_what_no_wake_told(shop: Shop) -> None:
    running = asyncio.create_task(shop.relay.run())
    await shop.advance(0)
    assert shop.rows.waits == [0.005]
    shop.rows.commit("A", "a1")
    shop.relay.wake()
    assert shop.relay.busy
    await shop.advance(0)
    await asyncio.sleep(0.01)
    assert shop.broker.seen == ["a1"]
    assert not shop.relay.busy
    assert len(shop.rows.claims) <= 4, "the relay spins after a wake"
    shop.rows.commit("B", "b1")
    await shop.advance(0.06)
    assert shop.broker.seen == ["a1", "b1"]
    running.cancel()


async def test_an_idle_relay_looks_less_often_and_never_stops(shop: Shop) -> None:
    running = asyncio.create_task(shop.relay.run())
    await shop.advance(600)
    assert shop.rows.waits[-1] == 0.5
    assert len(shop.rows.waits) < 1400
    shop.rows.commit("A", "a1")
    await shop.advance(1.0)
    assert shop.broker.seen == ["a1"]
    assert shop.rows.waits[-1] == 0.05
    running.cancel()


async def test_a_wake_from_another_thread_is_heard(shop: Shop) -> None:
    running = asyncio.create_task(shop.relay.run())
    await shop.advance(0)
    shop.rows.commit("A", "a1")
    published = asyncio.Event()

    async def seen() -> None:
        published.set()

    shop.broker.before = seen
    waker = threading.Timer(0.05, shop.relay.wake)
    waker.start()
    await asyncio.wait_for(published.wait(), 5)
    waker.join()
    running.cancel()


async def test_after_a_wake_that_came_before_the_commit_the_relay_looks_often_again(shop: Shop) -> None:
    running = asyncio.create_task(shop.relay.run())
    await shop.advance(60)
    assert shop.rows.waits[-1] == 0.5
    shop.relay.wake()
    await shop.advance(0)
    await asyncio.sleep(0.001)
    await shop.advance(0)
    assert shop.rows.waits[-1] < 0.05, "the commit mostly follows at once"
    await shop.advance(2)
    assert shop.rows.waits[-1] == 0.05
    running.cancel()


@pytest.mark.parametrize("what", ["broker", "rows"])
async def test_the_loop_survives_an_outage_with_one_line_down_and_one_up(
    shop: Shop, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level(logging.WARNING)
    running = asyncio.create_task(shop.relay.run())
    shop.rows.commit("A", "a1", "a2")
    down = getattr(shop, what)
    down.down = True
    await shop.advance(120)
    assert shop.broker.seen == []
    down.down = False
    await shop.advance(10.1)
    assert shop.broker.seen == ["a1", "a2"]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "down" in texts[0]
    assert "up again" in texts[1]
    running.cancel()
