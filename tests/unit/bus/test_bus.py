"""The bus from send to outcome, on memory and virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from easybus import (
    Bus,
    ConfigurationError,
    Message,
    NotOpen,
    Outgoing,
    PayloadError,
    Queue,
    Reject,
    Retry,
    Rollback,
    Router,
    SendError,
    Topic,
    Unroutable,
    fixed,
    never,
    schedule,
)


@dataclass
class OrderPaid:
    id: int
    amount: int = 0


@dataclass
class OrderRefunded:
    id: int


async def test_a_topic_send_reaches_each_bound_queue_whose_pattern_matches() -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    seen: list[tuple[str, OrderPaid]] = []

    @orders.handler("receipts", route_key="paid.#")
    async def receipts(event: OrderPaid) -> None:
        seen.append(("receipts", event))

    @orders.handler("audit")
    async def audit(event: OrderPaid) -> None:
        seen.append(("audit", event))

    async with bus.testing() as t:
        await orders.send(OrderPaid(1, 950), route_key="paid.eu")
        await orders.send(OrderPaid(2, 10), route_key="refused.eu")
        await t.drain()
        assert sorted(seen, key=lambda one: (one[0], one[1].id)) == [
            ("audit", OrderPaid(1, 950)),
            ("audit", OrderPaid(2, 10)),
            ("receipts", OrderPaid(1, 950)),
        ]
        assert t.sent(orders).values == [OrderPaid(1, 950), OrderPaid(2, 10)]
        assert repr(t.sent(orders)).startswith("Sent([OrderPaid(id=1, ")


async def test_a_failing_message_is_retried_by_its_policy_and_then_a_dead_letter() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    begun: list[float] = []

    @jobs.handler(retry=schedule(10, 60))
    async def handle(event: OrderPaid) -> None:
        begun.append(t.clock.time())
        raise ValueError("no")

    async with bus.testing() as t:
        start = t.clock.time()
        message = await jobs.send(OrderPaid(1))
        await t.drain()
        assert t.dead("jobs") == []
        await t.advance(seconds=9)
        assert [when - start for when in begun] == [0]
        await t.advance(minutes=2)
        assert [when - start for when in begun] == [0, 10, 70]
        [letter] = t.dead("jobs")
        assert letter.message_id == message.id
        assert (letter.attempts, letter.error, letter.error_type) == (3, "no", "builtins.ValueError")
        assert letter.last_failed - letter.first_failed == 70
        assert "raise ValueError" in letter.traceback
        assert [str(error) for error in t.failures] == ["no"] * 3


async def test_a_replayed_dead_letter_is_handled_and_gone() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    broken = True
    done: list[int] = []

    @jobs.handler(retry=never())
    async def handle(event: OrderPaid) -> None:
        if broken:
            raise ValueError("no")
        done.append(event.id)

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7))
        await t.drain()
        assert len(t.dead("jobs")) == 1
        broken = False
        assert await t.retry("jobs") == 1
        assert done == [7]
        assert t.dead("jobs") == []


async def test_reject_makes_a_dead_letter_at_once() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        raise Reject("not for us")

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7))
        await t.drain()
        [letter] = t.dead("jobs")
        assert letter.reason == "not for us"


async def test_retry_after_overrides_the_delay_and_counts() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    begun: list[float] = []

    @jobs.handler(retry=fixed(1, attempts=3))
    async def handle(event: OrderPaid) -> None:
        begun.append(t.clock.time())
        raise Retry("later", after=timedelta(minutes=1))

    async with bus.testing() as t:
        start = t.clock.time()
        await jobs.send(OrderPaid(7))
        await t.advance(minutes=5)
        assert [when - start for when in begun] == [0, 60, 120]
        assert len(t.dead("jobs")) == 1


async def test_false_is_a_failure() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)

    @jobs.handler(retry=never())
    async def handle(event: OrderPaid) -> bool:
        return False

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7))
        await t.drain()
        [letter] = t.dead("jobs")
        assert "False" in letter.reason


async def test_the_nearest_class_of_a_policy_mapping_wins() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    begun: list[float] = []

    @jobs.handler(retry={LookupError: fixed(5, attempts=2), KeyError: never(), Exception: fixed(9)})
    async def handle(event: OrderPaid) -> None:
        begun.append(t.clock.time())
        raise KeyError(event.id) if event.id == 1 else IndexError(event.id)

    async with bus.testing() as t:
        start = t.clock.time()
        await jobs.send(OrderPaid(1))
        await t.drain()
        assert len(t.dead("jobs")) == 1
        await jobs.send(OrderPaid(2))
        await t.advance(seconds=6)
        assert [when - start for when in begun] == [0, 0, 5]
        assert len(t.dead("jobs")) == 2


async def test_the_same_id_is_handled_once() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    done: list[int] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        for _ in range(3):
            await jobs.send(OrderPaid(7), id="same")
            await t.drain()
        assert done == [7]


async def test_an_id_used_for_another_payload_is_a_dead_letter() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    done: list[int] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7), id="same")
        await jobs.send(OrderPaid(8), id="same")
        await t.drain()
        assert len(done) == 1
        [letter] = t.dead("jobs")
        assert "another payload" in letter.reason


async def test_without_deduplication_each_copy_is_handled() -> None:
    bus = Bus("memory://", dedupe=None)
    jobs = bus.queue("jobs", OrderPaid)
    done: list[int] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7), id="same")
        await jobs.send(OrderPaid(7), id="same")
        await t.drain()
        assert done == [7, 7]


async def test_a_message_without_an_id_is_handled_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    ids: list[str] = []

    @jobs.handler(retry=schedule(1))
    async def handle(event: OrderPaid, message: Message) -> None:
        ids.append(message.id)
        if len(ids) == 1:
            raise ValueError("first")

    async with bus.testing() as t:
        await jobs.send(OrderPaid(7), id="")
        await jobs.send(OrderPaid(8), id="")
        await t.advance(seconds=2)
        assert ids[:2] == ["", ""]
        assert len(ids) == 3
        assert ids[2] != ""
        assert len([one for one in caplog.records if "without an id" in one.getMessage()]) == 1


async def test_several_types_on_a_topic_go_to_their_own_functions() -> None:
    bus = Bus("memory://")
    contract = Topic("orders", OrderPaid, OrderRefunded, names={OrderRefunded: "order.refunded"})
    orders = bus.bind(contract)
    seen: list[Any] = []

    @orders.handler("books", OrderPaid)
    async def paid(event: OrderPaid) -> None:
        seen.append(event)

    @orders.handler("books", OrderRefunded)
    async def refunded(event: OrderRefunded) -> None:
        seen.append(event)

    async with bus.testing() as t:
        await orders.send(OrderPaid(1))
        message = await orders.send(OrderRefunded(2))
        await t.drain()
        assert message.headers["type"] == "order.refunded"
        assert sorted(seen, key=lambda one: one.id) == [OrderPaid(1), OrderRefunded(2)]


async def test_a_type_without_a_function_is_a_dead_letter_or_ignored_if_told() -> None:
    for unmatched, letters in (("dead", 1), ("ignore", 0)):
        bus = Bus("memory://")
        orders = bus.bind(Topic("orders", OrderPaid, OrderRefunded))

        @orders.handler("books", OrderPaid, unmatched=unmatched)  # type: ignore[arg-type]
        async def paid(event: OrderPaid) -> None: ...

        async with bus.testing() as t:
            await orders.send(OrderRefunded(2))
            await t.drain()
            assert len(t.dead("books")) == letters
            assert (await bus.driver.stats("books")).ready == 0


async def test_undecodable_bytes_are_dead_letters_with_their_bytes_kept() -> None:
    from easybus.engines.contract import Publication

    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    done: list[int] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        deep = b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        for body in (b"\xff\x00no json", deep, b'{"b":"x","p":"bm9wZQ=="}'):
            await bus.opened.publisher.publish(Publication(False, "jobs", body))
        await jobs.send(OrderPaid(1))
        await t.drain()
        assert done == [1]
        letters = t.dead("jobs")
        assert {letter.body for letter in letters} == {b"\xff\x00no json", deep, b'{"b":"x","p":"bm9wZQ=="}'}
        assert all(letter.reason for letter in letters)


async def test_handlers_get_what_is_provided_per_process_and_per_message() -> None:
    class Client:
        pass

    class Session:
        pass

    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    clients: set[int] = set()
    sessions: list[Session] = []
    closed: list[str] = []

    async def session():  # type: ignore[no-untyped-def]
        made = Session()
        sessions.append(made)
        yield made
        closed.append("session")

    def client():  # type: ignore[no-untyped-def]
        yield Client()
        closed.append("client")

    bus.provide(Client, client)
    bus.provide(Session, session, per="message")

    @jobs.handler()
    async def handle(event: OrderPaid, http: Client, db: Session, message: Message) -> None:
        clients.add(id(http))
        assert message.id
        assert db is sessions[-1]

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await t.drain()
        await jobs.send(OrderPaid(2))
        await t.drain()
    assert len(clients) == 1
    assert len(sessions) == 2
    assert closed == ["session", "session", "client"]


async def test_a_parameter_that_nothing_provides_is_an_error_that_lists_what_is_provided() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    bus.provide(dict, dict)

    @jobs.handler()
    async def handle(event: OrderPaid, nothing: set) -> None: ...  # type: ignore[type-arg]

    with pytest.raises(ConfigurationError, match=r"'nothing' is a set.*dict"):
        async with bus.testing():
            pass


async def test_a_sync_handler_runs_in_a_thread() -> None:
    import threading

    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    threads: list[str] = []

    @jobs.handler()
    def handle(event: OrderPaid) -> None:
        threads.append(threading.current_thread().name)

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await t.drain()
        assert len(threads) == 1
        assert threads[0] != threading.main_thread().name


async def test_middleware_wraps_the_function_outermost_first() -> None:
    order: list[str] = []

    def layer(name: str):  # type: ignore[no-untyped-def]
        async def around(message: Message, call_next: Any) -> None:
            order.append(f"{name} in")
            await call_next(message)
            order.append(f"{name} out")

        return around

    bus = Bus("memory://", middleware=[layer("a"), layer("b")])
    jobs = bus.queue("jobs", OrderPaid)

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        order.append("handler")

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await t.drain()
        assert order == ["a in", "b in", "handler", "b out", "a out"]


async def test_a_handler_past_its_timeout_is_cancelled_and_retried() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    outcome: list[str] = []

    @jobs.handler(timeout=10, retry=schedule(5))
    async def handle(event: OrderPaid) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await t.advance(seconds=9)
        assert outcome == []
        await t.advance(seconds=30)
        assert outcome == ["cancelled", "cancelled"]
        [letter] = t.dead("jobs")
        assert "timeout" in letter.reason


async def test_a_handler_longer_than_its_lease_is_delivered_once() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    begun = 0
    release = asyncio.Event()

    @jobs.handler(lease=30)
    async def handle(event: OrderPaid) -> None:
        nonlocal begun
        begun += 1
        await release.wait()

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await t.advance(minutes=5)
        release.set()
        await t.drain()
        assert begun == 1
        assert (await bus.driver.stats("jobs")).in_flight == 0


async def test_a_delayed_send_comes_at_its_time_to_a_queue_and_to_a_topic() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    orders = bus.topic("orders", OrderPaid)
    at: dict[int, float] = {}

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        at[event.id] = t.clock.time() - start

    @orders.handler("receipts")
    async def receipts(event: OrderPaid) -> None:
        at[event.id] = t.clock.time() - start

    async with bus.testing() as t:
        start = t.clock.time()
        await jobs.send(OrderPaid(1), delay=60)
        await orders.send(OrderPaid(2), delay=90)
        await orders.send(OrderPaid(3), at=datetime.fromtimestamp(start + 30, UTC))
        await t.advance(minutes=3)
        assert at == {1: 60, 2: 90, 3: 30}


async def test_days_of_waiting_pass_in_a_few_steps() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    at: list[float] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        at.append(t.clock.time() - start)

    async with bus.testing() as t:
        start = t.clock.time()
        await jobs.send(OrderPaid(1), delay=86_400 * 29.5)
        await t.advance(days=30)
        assert at == [86_400 * 29.5]


async def test_a_transaction_is_published_if_the_block_succeeds_and_discarded_by_rollback() -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    done: list[int] = []

    @orders.committed
    async def paid(event: OrderPaid) -> bool | None:
        return None

    @orders.handler("receipts")
    async def receipts(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        async with orders.transaction(OrderPaid(1)):
            await t.drain()
            assert done == []
        async with orders.transaction(OrderPaid(2)):
            raise Rollback
        await t.drain()
        assert done == [1]
        assert bus.transactions is not None
        assert await bus.transactions.find() == []


async def test_after_an_error_the_half_is_asked_about_and_published_when_committed_says_true() -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    done: list[int] = []
    asked: list[float] = []

    @orders.committed(timeout=60)
    async def paid(message: Message) -> bool | None:
        asked.append(t.clock.time() - start)
        return True

    @orders.handler("receipts")
    async def receipts(event: OrderPaid) -> None:
        done.append(event.id)

    async with bus.testing() as t:
        start = t.clock.time()
        with pytest.raises(ValueError, match="half way"):
            async with orders.transaction(OrderPaid(1)):
                raise ValueError("half way")
        await t.advance(seconds=50)
        assert asked == []
        await t.advance(seconds=30)
        assert len(asked) == 1
        assert asked[0] >= 60
        assert done == [1]


async def test_a_transaction_without_an_answer_is_an_error_before_anything_is_stored() -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    async with bus:
        with pytest.raises(ConfigurationError, match="committed"):
            async with orders.transaction(OrderPaid(1)):
                pass
        assert bus.transactions is not None
        assert await bus.transactions.find() == []


async def test_an_unrouted_topic_send_warns_once_and_raises_where_required(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    async with bus:
        await orders.send(OrderPaid(1), route_key="a")
        await orders.send(OrderPaid(2), route_key="a")
        assert bus.unrouted["orders", "a"] == 2
        assert len([one for one in caplog.records if "kept nowhere" in one.getMessage()]) == 1
        with pytest.raises(Unroutable) as caught:
            await orders.send(OrderPaid(3), require=True)
        assert len(caught.value.failed) == 1


async def test_in_a_test_an_unrouted_send_is_an_error() -> None:
    bus = Bus("memory://")
    orders = bus.topic("orders", OrderPaid)
    async with bus.testing():
        with pytest.raises(Unroutable):
            await orders.send(OrderPaid(1))


async def test_send_many_keeps_order_and_says_which_were_not_confirmed() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", bytes)
    async with bus:
        messages = await jobs.send_many([b"a", Outgoing(b"b", id="two", headers={"x": "y"}), b"c"])
        assert [message.payload for message in messages] == [b"a", b"b", b"c"]
        assert messages[1].id == "two"
        assert messages[1].headers == {"x": "y"}
        limit = bus.driver.caps.max_body
        with pytest.raises(SendError) as caught:
            await jobs.send_many([b"d", b"x" * (limit + 1)])
        assert [len(message.payload) for message in caught.value.failed] == [limit + 1]
        assert (await bus.driver.stats("jobs")).ready == 4


async def test_a_message_is_sent_again_as_it_is_and_takes_no_options_of_its_own() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    async with bus:
        message = await jobs.send(OrderPaid(1), headers={"x": "y"})
        assert await jobs.send(message, delay=5) == message
        for options in ({"id": "other"}, {"route_key": "a"}, {"headers": {"x": "z"}}):
            with pytest.raises(ConfigurationError, match="has its own id"):
                await jobs.send(message, **options)  # type: ignore[arg-type]
        stats = await bus.driver.stats("jobs")
        assert (stats.ready, stats.delayed) == (1, 1)


async def test_a_wrong_value_is_a_payload_error_before_anything_is_sent() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    async with bus:
        for wrong in (OrderRefunded(1), {"id": "x"}, OrderPaid("no")):  # type: ignore[arg-type]
            with pytest.raises(PayloadError):
                await jobs.send(wrong)  # type: ignore[arg-type]
        assert (await bus.driver.stats("jobs")).ready == 0


async def test_an_unopened_bus_says_which_line_opens_it() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    with pytest.raises(NotOpen, match="async with bus"):
        await jobs.send(OrderPaid(1))


def test_a_bus_of_another_loop_says_so() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)

    async def opened() -> None:
        await bus.__aenter__()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(opened())
    try:
        with pytest.raises(NotOpen, match="another event loop"):
            asyncio.run(jobs.send(OrderPaid(1)))  # type: ignore[arg-type]
    finally:
        loop.run_until_complete(bus.__aexit__())
        loop.close()


async def test_one_router_serves_many_buses() -> None:
    orders = Topic("orders", OrderPaid)
    emails = Queue("emails", OrderPaid)
    router = Router()
    seen: list[int] = []

    @router.handler(orders, "receipts", OrderPaid)
    async def receipts(event: OrderPaid) -> None:
        seen.append(event.id)

    @router.handler(emails)
    async def email(event: OrderPaid) -> None:
        seen.append(-event.id)

    for _ in range(2):
        bus = Bus("memory://")
        bus.include(router)
        async with bus.testing() as t:
            await bus.send(orders, OrderPaid(1))
            await bus.send(emails, OrderPaid(2))
            await t.drain()
    assert sorted(seen) == [-2, -2, 1, 1]


async def test_dead_letters_nobody_looked_at_fail_the_test() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)

    @jobs.handler(retry=never())
    async def handle(event: OrderPaid) -> None:
        raise ValueError("no")

    async def leave_one() -> None:
        async with bus.testing() as t:
            await jobs.send(OrderPaid(1))
            await t.drain()

    with pytest.raises(AssertionError, match="1 dead letters"):
        await leave_one()


async def test_already_handled_is_asked_before_a_second_try() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", OrderPaid)
    effects: list[int] = []
    asked: list[int] = []

    async def already(event: OrderPaid) -> bool | None:
        asked.append(event.id)
        return [None, True][asked.count(1) - 1] if event.id == 1 else False

    @jobs.handler(already_handled=already, retry=fixed(1))
    async def handle(event: OrderPaid) -> None:
        effects.append(event.id)
        if effects.count(event.id) == 1:
            raise ValueError("after the effect")

    async with bus.testing() as t:
        await jobs.send(OrderPaid(1))
        await jobs.send(OrderPaid(2))
        await t.advance(minutes=1)
        assert sorted(effects) == [1, 2, 2]
        assert sorted(asked) == [1, 1, 2]
        assert (await bus.driver.stats("jobs")).ready == 0


async def test_stop_lets_handlers_end_and_gives_back_what_was_not_begun() -> None:
    bus = Bus("memory://stop-test")
    jobs = bus.queue("jobs", OrderPaid)
    begun: list[int] = []
    ended: list[int] = []
    gate = asyncio.Event()

    @jobs.handler(concurrency=2)
    async def handle(event: OrderPaid) -> None:
        begun.append(event.id)
        await gate.wait()
        ended.append(event.id)

    async with bus:
        async with bus.handling():
            for number in range(5):
                await jobs.send(OrderPaid(number))
            while len(begun) < 2:
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, gate.set)
        assert sorted(ended) == sorted(begun)
        stats = await bus.driver.stats("jobs")
        assert (stats.ready, stats.in_flight) == (5 - len(begun), 0)
        async with bus.handling():
            while len(ended) < 5:
                await asyncio.sleep(0.001)
        assert sorted(ended) == [0, 1, 2, 3, 4]


async def test_past_the_grace_handlers_are_cancelled_and_their_messages_go_back() -> None:
    bus = Bus("memory://grace-test")
    jobs = bus.queue("jobs", OrderPaid)
    begun: list[int] = []

    @jobs.handler()
    async def handle(event: OrderPaid) -> None:
        begun.append(event.id)
        await asyncio.get_running_loop().create_future()

    async with bus:
        async with bus.handling(grace=0.05):
            await jobs.send(OrderPaid(1))
            while not begun:
                await asyncio.sleep(0)
        stats = await bus.driver.stats("jobs")
        assert (stats.ready, stats.in_flight) == (1, 0)


async def test_a_memory_shorter_than_the_retries_is_said(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus("memory://", dedupe=timedelta(minutes=1))
    jobs = bus.queue("jobs", OrderPaid)
    short = bus.queue("short", OrderPaid)

    @jobs.handler(retry=fixed(60, attempts=5))
    async def handle(event: OrderPaid) -> None: ...

    @short.handler(retry=never(), lease=10)
    async def handle_short(event: OrderPaid) -> None: ...

    async with bus.testing():
        said = [one.getMessage() for one in caplog.records if "remembers" in one.getMessage()]
        assert len(said) == 1
        assert "'jobs'" in said[0]


async def test_messages_in_one_engine_and_keys_in_another(tmp_path: Path) -> None:
    bus = Bus("memory://", storage=f"sqlite:///{tmp_path}/keys.db")
    jobs = bus.queue("jobs", OrderPaid)
    done: list[int] = []

    @jobs.handler(retry=never())
    async def handle(event: OrderPaid) -> None:
        if event.id == 2:
            raise ValueError("no")
        done.append(event.id)

    async with bus.handling():
        await jobs.send(OrderPaid(1), id="one")
        await jobs.send(OrderPaid(1), id="one")
        await jobs.send(OrderPaid(2), id="two")
        assert bus.dead_letters is not None
        assert bus.idempotency is not None
        while not (await bus.dead_letters.count()).get("jobs") or (await bus.driver.stats("jobs")).in_flight:
            await asyncio.sleep(0.005)
        assert done == [1]
        assert await bus.idempotency.lookup("jobs", "one") == "done"
        assert await bus.idempotency.lookup("jobs", "two") == "free"
