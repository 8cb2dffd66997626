"""The program on virtual time: no worker, no waiting."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from orders import Order, bus, connect, place

from easybus.testing import BlockingHarness


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest.fixture
def t(database: Path) -> Iterator[BlockingHarness]:
    with bus.testing(storage=f"sqlite:///{database}").blocking as harness:
        yield harness


@pytest.fixture
def db(database: Path, t: BlockingHarness) -> Iterator[apsw.Connection]:
    with closing(connect(str(database))) as connection:
        yield connection


def charged(db: apsw.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT customer, cents FROM account").fetchall())


def test_each_order_is_charged_once(t: BlockingHarness, db: apsw.Connection) -> None:
    lines = [Order(1, "ann", 950), Order(2, "bob", 70)]
    assert place(lines, db) == 2
    assert place([*lines, Order(3, "ann", 50)], db) == 1
    t.drain()
    assert charged(db) == {"ann": 1000, "bob": 70}


def test_an_order_for_a_locked_account_waits(t: BlockingHarness, db: apsw.Connection) -> None:
    db.execute("INSERT INTO account (customer, locked) VALUES ('ann', 1)")
    place([Order(1, "ann", 950)], db)
    t.advance(minutes=30)
    assert [type(error).__name__ for error in t.failures] == ["AccountLocked"] * 2
    db.execute("UPDATE account SET locked = 0")
    t.advance(minutes=32)
    assert charged(db) == {"ann": 950}


def test_a_spoilt_order_is_a_dead_letter(t: BlockingHarness, db: apsw.Connection) -> None:
    place([Order(1, "ann", -5), Order(2, "bob", 70)], db)
    t.drain()
    [letter] = t.dead("orders")
    assert letter.reason == "-5 cents cannot be charged"
    assert charged(db) == {"bob": 70}
