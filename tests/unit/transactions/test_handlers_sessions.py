"""Handlers in sessions that the bus opens: their work, what they send, and the end of their message are one commit."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.servers.postgresql import PostgresqlServer
from tests.servers.proxy import Proxy
from tests.unit.transactions.shop import Shop

from easybus import Bus, ConfigurationError, NotSupported, Outgoing, fixed, never, points, transactions
from easybus.transactions import sqlalchemy_asyncpg

ASYNC = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy", "sqlite+aiosqlite"]
PLAIN = ["postgresql+psycopg", "mysql+pymysql", "sqlite+pysqlite"]


class Base(DeclarativeBase):
    """What the handlers write."""


class Payment(Base):
    __tablename__ = "ledger"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


class Ledger:
    """A database with the table, and a bus in it."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.bus = Bus(url, **settings)
        self.shop = Shop(self.bus, url)
        self.payments = self.bus.queue("payments", int)

    async def until(self, engine: AsyncEngine, wanted: list[int]) -> None:
        """Until the table holds this, and no message is left."""
        deadline = time.monotonic() + 10.0
        found: list[int] = []
        while time.monotonic() < deadline:
            async with AsyncSession(engine) as session:
                found = sorted((await session.execute(text("SELECT amount FROM ledger"))).scalars())
            stats = await self.bus.driver.stats("payments")
            if found == wanted and not (stats.ready or stats.in_flight or stats.delayed):
                return
            await asyncio.sleep(0.05)
        assert found == wanted
        raise AssertionError("messages are left")

    async def dead(self) -> list[str]:
        """Why the dead letters are dead, once there is one."""
        assert self.bus.dead_letters is not None
        deadline = time.monotonic() + 10.0
        while not (letters := await self.bus.dead_letters.find()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        return [letter.reason for letter in letters]


@pytest.fixture(params=ASYNC)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = "scheme" if "scheme" in request.fixturenames else "plain_scheme"
    if request.getfixturevalue(name).startswith("mysql"):
        return request.getfixturevalue("mariadb_server").prefix()
    if request.getfixturevalue(name).startswith("sqlite"):
        return f"sqlite:///{tmp_path}/bus.db?library=sqlite3"
    return request.getfixturevalue("postgresql_server").schema()


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url, retry=fixed(0.01, attempts=3))


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    scheme = {"sqlite": "sqlite+aiosqlite", "mysql": "mysql+asyncmy"}.get(url.partition(":")[0], "postgresql+asyncpg")
    async for engine in made(f"{scheme}://{url.partition('?')[0].partition('://')[2]}"):
        yield engine


@pytest.fixture
async def own(url: str, scheme: str, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The handlers' engine."""
    del engine  # has made the table
    own = create_async_engine(f"{scheme}://{url.partition('?')[0].partition('://')[2]}")
    yield own
    await own.dispose()


async def made(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("how", ["provided", "sessionmaker"])
async def test_a_handlers_work_is_committed_with_its_message(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine, how: str
) -> None:
    maker = async_sessionmaker(own)
    if how == "provided":
        ledger.bus.provide(AsyncSession, maker, per="message")

    @ledger.payments.handler(within=AsyncSession if how == "provided" else maker)
    async def write(amount: int, session: AsyncSession) -> None:
        session.add(Payment(amount=amount))  # what is not flushed yet goes too
        await ledger.shop.orders.send(amount, within=session)

    async with ledger.bus.handling():
        await ledger.payments.send_many(list(range(20)))
        await ledger.until(engine, list(range(20)))
        assert sorted(await ledger.shop.arrived(20)) == list(range(20))


async def test_a_handler_that_fails_leaves_nothing_of_its_work_and_of_what_it_sent(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    @ledger.payments.handler(within=async_sessionmaker(own))
    async def write(amount: int, session: AsyncSession) -> bool:
        session.add(Payment(amount=amount))
        await session.flush()
        await ledger.shop.orders.send(amount, within=session)
        if amount == 1:
            raise ValueError("rolled back")
        return amount != 2

    async with ledger.bus.handling():
        await ledger.payments.send_many([1, 2, 3])
        await ledger.until(engine, [3])
        assert await ledger.shop.arrived(1) == [3]
        while len(await ledger.dead()) < 2:
            await asyncio.sleep(0.02)
        assert await ledger.shop.nothing_waits()


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_a_worker_whose_claim_was_taken_over_cannot_commit(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    taken: list[str] = []

    @ledger.payments.handler(within=async_sessionmaker(own))
    async def write(amount: int, session: AsyncSession) -> None:
        session.add(Payment(amount=amount))
        await ledger.shop.orders.send(amount, within=session)

    async def take_over(name: str) -> None:
        """Between the handler's work and DONE another worker handles the message to its end."""
        if name == "within.effect" and not taken:
            assert ledger.bus.running is not None
            (hand,) = ledger.bus.running.receivers["payments"].at_work
            assert ledger.bus.idempotency is not None
            assert await ledger.bus.idempotency.complete([(hand.token, 60.0)]) == [True]
            taken.append(hand.token)

    points.hook = take_over
    try:
        async with ledger.bus.handling():
            await ledger.payments.send(7)
            async with asyncio.timeout(10):
                while not taken:
                    await asyncio.sleep(0.02)
            await ledger.until(engine, [])
            assert await ledger.shop.nothing_waits()
    finally:
        points.hook = None


async def test_a_handler_that_ends_the_transaction_itself_is_refused(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    @ledger.payments.handler(within=async_sessionmaker(own), retry=never())
    async def write(amount: int, session: AsyncSession) -> None:
        await session.commit()

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        (reason,) = await ledger.dead()
        assert "ended inside the handler" in reason


async def test_a_database_rule_that_refuses_the_commit_is_the_handlers_failure(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    @ledger.payments.handler(within=async_sessionmaker(own), retry=never())
    async def write(amount: int, session: AsyncSession) -> None:
        session.add_all([Payment(id=1, amount=amount), Payment(id=1, amount=amount)])

    async with ledger.bus.handling():
        await ledger.payments.send(1)
        (reason,) = await ledger.dead()
        assert "IntegrityError" in reason


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg"])
async def test_a_connection_lost_at_the_commit_has_one_effect(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    begun: list[int] = []

    @ledger.payments.handler(within=async_sessionmaker(own), lease=1)
    async def write(amount: int, session: AsyncSession) -> None:
        begun.append(await session.scalar(text("SELECT pg_backend_pid()")) or 0)
        session.add(Payment(amount=amount))

    async def cut(name: str) -> None:
        if name == "within.done" and len(begun) == 1:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": begun[0]})

    points.hook = cut
    try:
        async with ledger.bus.handling():
            await ledger.payments.send(7)
            await ledger.until(engine, [7])
    finally:
        points.hook = None
    assert len(begun) == 2


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg"])
async def test_a_provider_that_begins_and_commits_by_itself_will_do(
    ledger: Ledger, engine: AsyncEngine, own: AsyncEngine
) -> None:
    async def session() -> AsyncIterator[AsyncSession]:
        async with async_sessionmaker(own).begin() as session:
            yield session

    ledger.bus.provide(AsyncSession, session, per="message")

    @ledger.payments.handler(within=AsyncSession, retry=never())
    async def write(amount: int, session: AsyncSession) -> bool:
        session.add(Payment(amount=amount))
        await session.flush()
        return amount > 0

    async with ledger.bus.handling():
        await ledger.payments.send_many([1, -1, 2])
        await ledger.until(engine, [1, 2])


async def test_the_server_ends_an_idle_handlers_transaction_within_the_lease(
    postgresql_server: PostgresqlServer,
) -> None:
    ledger = Ledger(postgresql_server.schema())
    said: list[str] = []
    async for engine in made(f"postgresql+asyncpg://{ledger.shop.database}"):

        @ledger.payments.handler(within=async_sessionmaker(engine), lease=7)
        async def write(amount: int, session: AsyncSession) -> None:
            said.append(await session.scalar(text("SHOW idle_in_transaction_session_timeout")) or "")

        async with ledger.bus.handling():
            await ledger.payments.send(1)
            await ledger.until(engine, [])
        assert said == ["7s"]
        async with AsyncSession(engine) as session:
            assert await session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "0"


async def test_the_last_statement_is_prepared_under_the_names_that_the_user_gives(
    postgresql_server: PostgresqlServer,
) -> None:
    numbers = itertools.count(1)
    named = create_async_engine(
        f"postgresql+asyncpg://{postgresql_server.database().partition('://')[2]}",
        connect_args={"prepared_statement_name_func": lambda: f"own_{next(numbers)}"},
    )
    try:
        async with AsyncSession(named) as session:
            transaction = transactions.find(session)
            await transaction.start(5.0)
            assert await transaction.complete("SELECT 40 + $1::int", (2,)) == 1
            look = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'SELECT 40 +%'"
            assert [name.startswith("own_") for name in (await session.scalars(text(look))).all()] == [True]
    finally:
        await named.dispose()


# ------------------------------------------------------------------------------ the bus's statements with BEGIN, COMMIT


Shared: TypeAlias = tuple[Ledger, AsyncEngine, AsyncEngine, Proxy]


@pytest.fixture
async def shared(postgresql_server: PostgresqlServer) -> AsyncIterator[Shared]:
    """A ledger on asyncpg, who looks at it, and the handlers' only connection, through a proxy."""
    ledger = Ledger(postgresql_server.schema(), retry=fixed(0.01, attempts=5))
    async for looking in made(f"postgresql+asyncpg://{ledger.shop.database}"):
        async with Proxy(postgresql_server.port) as proxy:
            through = ledger.shop.database.replace(f":{postgresql_server.port}", f":{proxy.port}")
            own = create_async_engine(f"postgresql+asyncpg://{through}", pool_size=1, max_overflow=0)
            yield ledger, looking, own, proxy
            await own.dispose()


def writing(ledger: Ledger, own: AsyncEngine, **options: Any) -> None:
    @ledger.payments.handler(within=async_sessionmaker(own), concurrency=1, **options)
    async def write(amount: int, session: AsyncSession) -> None:
        session.add(Payment(amount=amount))


async def test_on_asyncpg_the_bus_adds_no_round_trip_to_a_handlers_transaction(shared: Shared) -> None:
    ledger, looking, own, proxy = shared
    writing(ledger, own)
    async with ledger.bus.handling():
        await ledger.payments.send_many(list(range(10)))
        await ledger.until(looking, list(range(10)))
        before = proxy.round_trips
        await ledger.payments.send_many(list(range(10, 30)))
        await ledger.until(looking, list(range(30)))
        assert proxy.round_trips - before == 20 * 3  # BEGIN, INSERT, COMMIT


async def test_a_connection_whose_commit_was_refused_goes_on(shared: Shared) -> None:
    ledger, looking, own, _ = shared
    writing(ledger, own)
    refused: list[int] = []

    async def take_over(name: str) -> None:
        if name == "within.done" and not refused:
            assert ledger.bus.running is not None
            assert ledger.bus.idempotency is not None
            (hand,) = ledger.bus.running.receivers["payments"].at_work
            assert await ledger.bus.idempotency.complete([(hand.token, 60.0)]) == [True]
            refused.append(1)

    points.hook = take_over
    try:
        async with ledger.bus.handling():
            await ledger.payments.send_many([1, 2, 3])
            await ledger.until(looking, [2, 3])
    finally:
        points.hook = None
    assert refused


@pytest.mark.parametrize("otherwise", ["begins", "commits"])
async def test_libraries_that_begin_or_commit_in_other_words_leave_no_message_unmarked(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, otherwise: str
) -> None:
    ledger, looking, own, _ = shared
    along: Any = sqlalchemy_asyncpg._Along
    execute = along.execute

    async def in_other_words(self: Any, query: str, *args: Any, **options: Any) -> Any:
        word = "BEGIN" if otherwise == "begins" else "COMMIT"
        return await execute(self, query.replace(word, f"/* */ {word}"), *args, **options)

    monkeypatch.setattr(along, "execute", in_other_words)
    writing(ledger, own)
    async with ledger.bus.handling():
        await ledger.payments.send_many([Outgoing(1, id="1"), Outgoing(2, id="2")])
        await ledger.until(looking, [1, 2])
        await ledger.payments.send_many([Outgoing(1, id="1"), Outgoing(2, id="2"), Outgoing(3, id="3")])
        await ledger.until(looking, [1, 2, 3])


async def test_what_was_prepared_for_the_commit_and_is_there_no_more_is_prepared_again(shared: Shared) -> None:
    ledger, looking, own, _ = shared
    deallocated: list[str] = []

    @ledger.payments.handler(within=async_sessionmaker(own), concurrency=1)
    async def write(amount: int, session: AsyncSession) -> None:
        session.add(Payment(amount=amount))
        if amount == 2 and not deallocated:
            ours = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'WITH gone AS%'"
            deallocated.append((await session.scalars(text(ours))).one())
            await session.execute(text(f'DEALLOCATE "{deallocated[0]}"'))

    async with ledger.bus.handling():
        await ledger.payments.send_many([1, 2, 3])
        await ledger.until(looking, [1, 2, 3])
    assert deallocated


async def test_what_the_session_holds_back_and_the_database_refuses_is_the_handlers_failure(shared: Shared) -> None:
    ledger, looking, own, _ = shared
    writing(ledger, own, retry=never())
    async with ledger.bus.handling():
        await ledger.payments.send_many([1, 1 << 40, 3])  # one is over the column's range
        (reason,) = await ledger.dead()
        assert "value out of int32 range" in reason
        await ledger.until(looking, [1, 3])


async def test_a_handler_that_is_cancelled_while_its_transaction_begins_spoils_no_connection(shared: Shared) -> None:
    ledger, looking, own, proxy = shared
    writing(ledger, own, timeout=0.3)
    async with ledger.bus.handling():
        await ledger.payments.send(1)
        await ledger.until(looking, [1])
        proxy.speaks.clear()
        before = proxy.round_trips
        await ledger.payments.send(2)
        await asyncio.sleep(0.4)  # its time-out
        assert proxy.round_trips == before
        proxy.speaks.set()
        await ledger.payments.send(3)
        await ledger.until(looking, [1, 2, 3])


# ------------------------------------------------------------------------------------------------------- plain sessions


@pytest.mark.parametrize("plain_scheme", PLAIN)
@pytest.mark.parametrize("how", ["provided", "sessionmaker"])
async def test_a_plain_functions_plain_session_is_handled_in_threads(
    ledger: Ledger, engine: AsyncEngine, plain_scheme: str, how: str
) -> None:
    own = create_engine(f"{plain_scheme}://{ledger.shop.database}")
    maker = sessionmaker(own)
    if how == "provided":
        ledger.bus.provide(Session, maker, per="message")

    @ledger.payments.handler(within=Session if how == "provided" else maker)
    def write(amount: int, session: Session) -> bool:
        session.add(Payment(amount=amount))
        ledger.bus.blocking.send(ledger.shop.orders, amount, within=session)
        return amount >= 0

    try:
        async with ledger.bus.handling():
            await ledger.payments.send_many([1, 2, -3, 4])
            await ledger.until(engine, [1, 2, 4])
            assert sorted(await ledger.shop.arrived(3)) == [1, 2, 4]
    finally:
        own.dispose()


async def test_in_a_test_the_session_is_provided_on_the_tests_own_file(tmp_path: Path) -> None:
    ledger = Ledger("postgresql://nobody@nowhere.example/shop")
    ledger.bus.provide(AsyncSession, lambda: 1 / 0, per="message")

    @ledger.payments.handler(within=AsyncSession)
    async def write(amount: int, session: AsyncSession) -> None:
        session.add(Payment(amount=amount))

    async for engine in made(f"sqlite+aiosqlite:///{tmp_path}/test.db"):
        provide = {AsyncSession: async_sessionmaker(engine)}
        url = f"sqlite:///{tmp_path}/test.db?library=sqlite3"
        async with ledger.bus.testing(storage=url, provide=provide) as testing:
            await ledger.payments.send(7)
            await testing.drain()
            async with AsyncSession(engine) as session:
                assert (await session.scalars(select(Payment.amount))).all() == [7]
        with pytest.raises(ConfigurationError, match=r"bus\.testing\(storage="):
            async with ledger.bus.testing(provide=provide):
                pass


# ------------------------------------------------------------------------------------------------- refused at the start


async def starting(bus: Bus) -> None:
    async with bus.handling():
        raise AssertionError("it handles")


async def test_a_session_of_another_database_is_refused_before_anything_is_handled(
    postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    ledger = Ledger(postgresql_server.schema())
    async for engine in made(postgresql_server.database().replace("://", "+asyncpg://", 1)):

        @ledger.payments.handler(within=async_sessionmaker(engine))
        async def write(amount: int, session: AsyncSession) -> None: ...

        with pytest.raises(ConfigurationError, match="storage="):
            await starting(ledger.bus)


async def test_what_cannot_work_is_refused_with_what_to_write(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/bus.db?library=sqlite3"
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    plain = create_engine(f"sqlite:///{tmp_path}/bus.db")

    def bus_with(within: Any, function: Any, provide: Any = None, per: Any = "message") -> Bus:
        bus = Bus(url)
        if provide is not None:
            bus.provide(within, provide, per=per)
        bus.queue("payments", int).handler(within=within)(function)
        return bus

    async def with_async(amount: int, session: AsyncSession) -> None: ...

    def plainly_with_async(amount: int, session: AsyncSession) -> None: ...

    async def with_plain(amount: int, session: Session) -> None: ...

    makers = async_sessionmaker(engine)
    with pytest.raises(NotSupported, match=r"bus\.provide\(AsyncSession"):
        await starting(bus_with(AsyncSession, with_async))
    with pytest.raises(ConfigurationError, match=r"per='message'"):
        await starting(bus_with(AsyncSession, with_async, makers, "process"))
    with pytest.raises(ConfigurationError, match="async def"):
        await starting(bus_with(makers, plainly_with_async))
    with pytest.raises(ConfigurationError, match="without async"):
        await starting(bus_with(sessionmaker(plain), with_plain))
    with pytest.raises(ConfigurationError, match=r"bus\.provide"):
        await starting(bus_with(functools.partial(makers), with_async))
    await engine.dispose()
    plain.dispose()
