"""Messages in callers' SQLAlchemy transactions: PostgreSQL by asyncpg and psycopg, SQLite by aiosqlite and sqlite3."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from tests.unit.transactions.shop import Shop

from easybus import Bus, ConfigurationError
from easybus.sending.outbox import write_async

ASYNC = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy", "sqlite+aiosqlite"]
PLAIN = ["postgresql+psycopg", "mysql+pymysql", "sqlite+pysqlite"]
Engines: TypeAlias = Callable[..., Any]


def storage(request: pytest.FixtureRequest, scheme: str, directory: Path) -> str:
    """A bus's URL."""
    if scheme.startswith("sqlite"):
        return f"sqlite:///{directory}/bus.db?library=sqlite3"
    if scheme.startswith("mysql"):
        return request.getfixturevalue("mariadb_server").prefix()
    return request.getfixturevalue("postgresql_server").schema()


@asynccontextmanager
async def engine_of(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture(params=ASYNC)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PLAIN)
def plain_scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    name = "scheme" if "scheme" in request.fixturenames else "plain_scheme"
    url = storage(request, request.getfixturevalue(name), tmp_path)
    bus = Bus(url, service="shop")
    shop = Shop(bus, url)
    async with bus:
        yield shop


@pytest.fixture
async def engine(shop: Shop, scheme: str) -> AsyncIterator[AsyncEngine]:
    async with engine_of(f"{scheme}://{shop.database}") as engine:
        yield engine


@pytest.fixture
def plain(shop: Shop, plain_scheme: str) -> Iterator[Engine]:
    engine = create_engine(f"{plain_scheme}://{shop.database}")
    yield engine
    engine.dispose()


# ------------------------------------------------------------------------------------------------------------- async


async def test_a_committed_sessions_messages_are_published_in_their_order(shop: Shop, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await shop.orders.send(1, within=session)  # begins by itself
        await shop.orders.send_many([2, 3], within=session)
        await shop.orders.send(4, within=session)
        await asyncio.sleep(0.2)
        assert await shop.nothing_waits(), "it was published before the commit"
        await session.commit()
        assert await shop.arrived(4) == [1, 2, 3, 4]
        await shop.orders.send(5, within=session)
        await session.commit()
        assert await shop.arrived(1) == [5]


async def test_what_is_rolled_back_or_never_committed_never_existed(shop: Shop, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await shop.orders.send(1, within=session)
        await session.rollback()
        await shop.orders.send(2, within=session)

    async def fails() -> None:
        async with AsyncSession(engine) as session, session.begin():
            await shop.orders.send(3, within=session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    await asyncio.sleep(0.1)
    assert await shop.nothing_waits()


async def test_what_a_savepoint_takes_back_is_gone_and_the_rest_keeps_its_order(
    shop: Shop, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await shop.orders.send(1, within=session)
        savepoint = await session.begin_nested()
        await shop.orders.send(2, within=session)
        await savepoint.rollback()
        async with session.begin_nested():
            await shop.orders.send(3, within=session)
        await shop.orders.send(4, within=session)
    assert await shop.arrived(3) == [1, 3, 4]


async def test_a_connection_and_a_scoped_session_will_do(shop: Shop, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await shop.orders.send(1, within=connection)
    async with engine.connect() as connection:
        await shop.orders.send(2, within=connection)
        await connection.rollback()
    scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    async with scoped.begin():
        await shop.orders.send(3, within=scoped)
    await scoped.remove()
    assert sorted(await shop.arrived(2)) == [1, 3]


async def test_a_send_adds_one_round_trip_whatever_it_carries(shop: Shop, engine: AsyncEngine) -> None:
    statements: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    async with AsyncSession(engine) as session:
        await shop.orders.send(1, within=session)  # the connection is asked once for all which database it is to
        statements.clear()
        await shop.orders.send(2, within=session)
        assert len(statements) == 1
        statements.clear()
        await shop.orders.send_many([3, 4, 5], within=session)
        if not shop.url.startswith("sqlite"):  # where a statement is no round trip
            assert len(statements) == 1
        await session.commit()
    assert sorted(await shop.arrived(5)) == [1, 2, 3, 4, 5]


async def test_a_sessions_commit_wakes_the_relays_and_one_without_messages_does_not(
    shop: Shop, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []
    monkeypatch.setattr(shop.bus.opened, "wake_relays", lambda: woken.append("woken"))
    async with AsyncSession(engine) as session:
        await shop.orders.send(1, within=session)
        await shop.orders.send(2, within=session)
        assert woken == []
        await session.commit()
        assert len(woken) in (1, 2)
        woken.clear()
        await session.execute(text("SELECT 1"))
        await session.commit()
        assert woken == []
        async with session.begin_nested():
            await shop.orders.send(3, within=session)
        woken.clear()
        await session.commit()
        assert woken == ["woken"], "the savepoint's end was taken for the commit"


@pytest.mark.alone
@pytest.mark.parametrize("scheme", ["postgresql+asyncpg"])  # what looks every second when nothing comes
async def test_after_a_quiet_time_a_commits_messages_go_at_once(shop: Shop, engine: AsyncEngine) -> None:
    took: list[float] = []
    async with AsyncSession(engine) as session:
        for number in range(3):
            await shop.orders.send(number, within=session)
            await asyncio.sleep(1.3)  # the relay looks rarely now
            began = time.monotonic()
            await session.commit()
            assert await shop.arrived(1) == [number]
            took.append(time.monotonic() - began)
    assert max(took) < 0.4


async def test_autocommit_and_closed_are_refused(shop: Shop, engine: AsyncEngine) -> None:
    commits_each = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with AsyncSession(commits_each) as session:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await shop.orders.send(1, within=session)
    async with AsyncSession(engine, autobegin=False) as session:
        with pytest.raises(ConfigurationError, match=r"session\.begin\(\)"):
            await shop.orders.send(1, within=session)
    async with engine.connect() as connection:
        pass
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=connection)
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=engine.connect())
    session = AsyncSession(engine, close_resets_only=False)
    await session.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await shop.orders.send(1, within=session)
    assert await shop.nothing_waits()


@pytest.mark.parametrize("scheme", [one for one in ASYNC if not one.startswith("mysql")])
async def test_another_database_is_refused_and_its_transaction_lives_on(
    shop: Shop, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    other = f"/{tmp_path}/other.db"
    if not scheme.startswith("sqlite"):
        other = request.getfixturevalue("postgresql_server").database().partition("://")[2]
    async with engine_of(f"{scheme}://{other}") as engine:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("CREATE TABLE kept (id int)"))
            await session.execute(text("INSERT INTO kept VALUES (1)"))
            with pytest.raises(ConfigurationError, match="databases="):
                await shop.orders.send(1, within=session)
        async with AsyncSession(engine) as session:
            assert await session.scalar(text("SELECT count(*) FROM kept")) == 1


@pytest.mark.parametrize("scheme", ["mysql+asyncmy"])
async def test_another_servers_session_is_refused_and_its_transaction_lives_on(shop: Shop, engine: AsyncEngine) -> None:
    """The tables are named with their database, so another database of the same server will do."""
    outbox = SimpleNamespace(identity=lambda: ("SELECT value FROM `nowhere`.`meta`", "x"), url="mysql://nowhere")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS kept (id int)"))
        await connection.execute(text("DELETE FROM kept"))
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("INSERT INTO kept VALUES (1)"))
        with pytest.raises(ConfigurationError, match="databases="):
            await write_async(session, [outbox], "shop", [], lambda: None)  # type: ignore[list-item]
    async with AsyncSession(engine) as session:
        assert await session.scalar(text("SELECT count(*) FROM kept")) == 1


async def test_a_bus_on_the_other_sqlite_library_refuses_before_the_file_is_opened(tmp_path: Path) -> None:
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    orders = bus.queue("orders", int)
    async with bus, engine_of(f"sqlite+aiosqlite:///{tmp_path}/bus.db") as engine:
        connected: list[Any] = []
        event.listen(engine.sync_engine, "connect", lambda *given: connected.append(given))
        async with AsyncSession(engine) as session:
            with pytest.raises(ConfigurationError, match=r"library=sqlite3"):
                await orders.send(1, within=session)
        assert connected == []


async def test_a_session_of_several_databases_is_refused_with_what_to_pass(shop: Shop, engine: AsyncEngine) -> None:
    async with AsyncSession(binds={}) as session:
        with pytest.raises(ConfigurationError, match=r"session\.connection\("):
            await shop.orders.send(1, within=session)


# ------------------------------------------------------------------------------------------------------------- plain


async def test_a_plain_session_sends_from_its_own_thread(shop: Shop, plain: Engine) -> None:
    blocking, orders = shop.bus.blocking, shop.orders

    def work() -> None:
        with Session(plain) as session:
            blocking.send(orders, 1, within=session)
            session.commit()
            blocking.send(orders, 2, within=session)
            session.rollback()
            with session.begin_nested():
                blocking.send(orders, 3, within=session)
            savepoint = session.begin_nested()
            blocking.send(orders, 4, within=session)
            savepoint.rollback()
            blocking.send_many(orders, [5, 6], within=session)
            session.commit()
        with plain.begin() as connection:
            blocking.send(orders, 7, within=connection)
        scoped = scoped_session(sessionmaker(plain))
        blocking.send(orders, 8, within=scoped)
        scoped.commit()
        scoped.remove()

    await asyncio.to_thread(work)
    found = await shop.arrived(6)
    assert sorted(found) == [1, 3, 5, 6, 7, 8]
    assert [number for number in found if number in (3, 5, 6)] == [3, 5, 6]


async def test_a_plain_session_in_async_code_sends_too(shop: Shop, plain: Engine) -> None:
    with Session(plain) as session:
        await shop.orders.send(1, within=session)
        session.commit()
    assert await shop.arrived(1) == [1]


async def test_a_plain_connection_that_is_closed_or_commits_each_statement_is_refused(
    shop: Shop, plain: Engine
) -> None:
    def work() -> None:
        with plain.connect() as connection:
            pass
        with pytest.raises(ConfigurationError, match="closed"):
            shop.bus.blocking.send(shop.orders, 1, within=connection)
        commits_each = plain.execution_options(isolation_level="AUTOCOMMIT")
        with commits_each.connect() as connection, pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            shop.bus.blocking.send(shop.orders, 1, within=connection)

    await asyncio.to_thread(work)
    assert await shop.nothing_waits()


async def test_another_driver_is_refused_with_what_there_is() -> None:
    from easybus.transactions import find

    class Dialect:
        name, driver = "oracle", "oracledb"

    class Bound(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return type("Engine", (), {"dialect": Dialect})

    with pytest.raises(ConfigurationError, match=r"oracle\+oracledb; it can be postgresql\+asyncpg"):
        find(Bound())
