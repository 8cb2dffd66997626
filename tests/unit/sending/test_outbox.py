"""Messages in callers' SQLite transactions: stored if and only if committed, relayed, and whose database it must be."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest

from easybus.clock import SystemClock
from easybus.connection import Publisher
from easybus.engines.contract import Ack, Binding, DeclareQueue, DeclareTopic, Publication
from easybus.engines.sqlite import create
from easybus.errors import ConfigurationError
from easybus.message import Message
from easybus.sending.outbox import write
from easybus.sending.relay import Relay


def publication(name: str) -> Publication:
    return Publication(True, "orders", Message(id=name, payload=b"1").to_bytes(), dedupe_id=name)


class Shop:
    """A bus's engine on a file, a caller's connection to it, and a relay."""

    def __init__(self, engine: Any, path: Path) -> None:
        self.engine = engine
        self.path = path
        self.caller = apsw.Connection(str(path))
        self.caller.set_busy_timeout(5_000)
        self.caller.execute("CREATE TABLE orders (id TEXT)")
        self.relay = self.another()
        self.wakes = 0

    def another(self) -> Relay:
        clock = SystemClock()
        return Relay(
            service="shop",
            outbox=self.engine.outbox,
            publisher=Publisher(self.engine.driver, clock),
            clock=clock,
            logger=logging.getLogger("easybus"),
        )

    def wake(self) -> None:
        self.wakes += 1
        self.relay.wake()

    def write(self, *names: str, tx: object = None, service: str = "shop") -> None:
        write(tx or self.caller, [self.engine.outbox], service, [publication(name) for name in names], self.wake)

    async def arrived(self, wanted: int = 0) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(10):
            while True:
                deliveries = await self.engine.driver.fetch("seen", 1000, 0.02, 30)
                await self.engine.driver.settle("seen", [Ack(delivery) for delivery in deliveries])
                found += [Message.from_bytes(delivery.body).id for delivery in deliveries]
                if len(found) >= wanted:
                    return found


@pytest.fixture
async def open_engine(tmp_path: Path) -> AsyncIterator[Callable[[str], Any]]:
    async with AsyncExitStack() as stack:

        async def open_engine(name: str) -> Any:
            engine = create(f"sqlite:///{tmp_path / name}", SystemClock())
            await engine.open()
            stack.push_async_callback(engine.close)
            await engine.driver.declare([DeclareTopic("orders"), DeclareQueue("seen"), Binding("orders", "seen")])
            return engine

        yield open_engine


@pytest.fixture
async def shop(open_engine: Callable[[str], Any], tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(await open_engine("shop.db"), tmp_path / "shop.db")
    yield shop
    shop.caller.close()


async def test_a_message_is_published_if_the_transaction_commits(shop: Shop) -> None:
    with shop.caller:
        shop.caller.execute("INSERT INTO orders VALUES ('o-1')")
        shop.write("m-1")
        shop.write("m-2", "m-3")
        assert await shop.relay.relay_due() == 0
    assert shop.wakes == 2
    assert await shop.relay.relay_due() == 3
    assert await shop.arrived() == ["m-1", "m-2", "m-3"]
    assert await shop.engine.outbox.find() == []


async def test_a_message_never_existed_if_the_transaction_rolls_back(shop: Shop) -> None:
    shop.caller.execute("BEGIN IMMEDIATE")
    shop.write("m-1")
    shop.caller.execute("ROLLBACK")
    assert await shop.relay.relay_due() == 0
    assert await shop.engine.outbox.find() == []


async def test_a_savepoint_that_rolls_back_takes_its_messages_with_it(shop: Shop) -> None:
    with shop.caller:
        shop.write("m-1")
        shop.caller.execute("SAVEPOINT inner_one")
        shop.write("m-2")
        shop.caller.execute("ROLLBACK TO inner_one")
        shop.write("m-3")
    assert await shop.relay.relay_due() == 2
    assert await shop.arrived() == ["m-1", "m-3"]


async def test_two_services_on_one_file_relay_their_own_rows_only(shop: Shop) -> None:
    with shop.caller:
        shop.write("m-1", service="billing")
    assert await shop.relay.relay_due() == 0
    assert len(await shop.engine.outbox.find("billing")) == 1


async def test_a_running_relay_publishes_soon_after_the_commit(shop: Shop) -> None:
    running = asyncio.create_task(shop.relay.run())
    await asyncio.sleep(0)
    for number in range(5):
        shop.caller.execute("BEGIN IMMEDIATE")
        shop.write(f"m-{number}")
        shop.caller.execute("COMMIT")
        assert await shop.arrived(1) == [f"m-{number}"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_three_relays_on_one_file_keep_each_transactions_order_and_send_no_copies(shop: Shop) -> None:
    relays = [asyncio.create_task(shop.another().run()) for _ in range(3)]
    for transaction in range(30):
        shop.caller.execute("BEGIN IMMEDIATE")
        shop.write(*(f"{transaction}.{position}" for position in range(4)))
        shop.caller.execute("COMMIT")
        await asyncio.sleep(0)
    seen = await shop.arrived(120)
    for relay in relays:
        relay.cancel()
    await asyncio.gather(*relays, return_exceptions=True)
    assert sorted(seen) == sorted(f"{transaction}.{position}" for transaction in range(30) for position in range(4))
    for transaction in range(30):
        assert [name for name in seen if name.split(".")[0] == str(transaction)] == [
            f"{transaction}.{position}" for position in range(4)
        ]


async def test_a_refused_transaction_is_parked_and_goes_out_when_unparked(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = Publication(True, "later", b"{}", dedupe_id="m-1")
    with shop.caller:
        write(shop.caller, [shop.engine.outbox], "shop", [nowhere, publication("m-2")], shop.wake)
    assert await shop.relay.relay_due() == 0
    (first, second) = await shop.engine.outbox.find(parked=True)
    assert "NotDeclared" in first.error
    assert "unpark" in caplog.text
    await shop.engine.driver.declare([DeclareTopic("later")])
    assert await shop.engine.outbox.unpark(second.transaction)
    assert await shop.relay.relay_due() == 2
    assert await shop.arrived() == ["m-2"]


# ---------------------------------------------------------------------------------------------------- which database


async def test_the_outbox_of_the_connections_own_database_is_found_among_several(
    open_engine: Callable[[str], Any], tmp_path: Path
) -> None:
    engines = [await open_engine(name) for name in ("a.db", "b.db", "c.db")]
    outboxes = [engine.outbox for engine in engines]
    caller = apsw.Connection(str(tmp_path / "b.db"))
    with caller:
        write(caller, outboxes, "shop", [publication("m-1")], lambda: None)
    caller.close()
    assert [len(await outbox.find()) for outbox in outboxes] == [0, 1, 0]


async def test_another_database_is_an_error_that_names_databases(shop: Shop, tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigurationError, match=r"databases=\["):
        shop.write("m-1", tx=other)
    other.close()


async def test_a_connection_outside_a_transaction_is_an_error_and_nothing_is_written(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="BEGIN"):
        shop.write("m-1")
    assert await shop.engine.outbox.find() == []
    assert shop.wakes == 0


async def test_a_closed_connection_is_an_error(shop: Shop) -> None:
    shop.caller.close()
    with pytest.raises(ConfigurationError, match="closed"):
        shop.write("m-1")


async def test_a_connection_of_the_other_sqlite_library_is_an_error(shop: Shop, tmp_path: Path) -> None:
    from easybus.transactions import CallerTransaction

    class Pretends:
        """As sqlite3 would see the file: opening it here for real is what must never happen."""

        library, is_async, closed, in_transaction = "sqlite3", False, False, True

        def identity(self, statement: str) -> Any:
            return shop.engine.outbox.identity()[1]

    import easybus.sending.outbox as module

    caller: CallerTransaction = Pretends()  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find", lambda tx: caller)
        with pytest.raises(ConfigurationError, match="library"):
            shop.write("m-1")


async def test_an_object_that_is_no_connection_is_an_error_that_names_what_is_supported(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="sqlite3"):
        shop.write("m-1", tx=object())


async def test_a_bus_without_an_outbox_says_which_line_to_write(tmp_path: Path) -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(ConfigurationError, match="storage="):
        write(connection, [], "shop", [publication("m-1")], lambda: None)
    connection.close()
