"""The bank, run as a user runs it, on a sample; in full with `make test-long`."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from examples.bank.__main__ import Bank
from examples.bank.audit import Line, close_the_books
from examples.bank.database import TABLES, open_database
from examples.bank.plan import balances, planned
from examples.processes import Crashed
from tests.servers import missing
from tests.servers.mariadb import MariadbServer

from easybus import Bus

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.kills, pytest.mark.timeout(240)]


def bank(engine: str, *arguments: object, timeout: float | None) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "examples.bank", "--engine", engine, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )
    if "no server for" in ran.stdout:
        missing(ran.stdout)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def figure(name: str, said: str) -> int:
    found = re.search(rf"^{name} +([\d,]+)", said, re.MULTILINE)
    assert found, f"no {name!r} in:\n{said}"
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("engine", ["sqlite", "postgresql", "mysql"])
def test_every_account_is_right_though_workers_and_the_database_are_killed(engine: str) -> None:
    kills = ("--kill-every", 1, "--server-every", 3, "--kill-for", 7)
    said = bank(engine, "--transfers", 300, "--seed", 11, "--pause", 0.03, *kills, timeout=200)
    assert "every account is right" in said
    assert re.search(r"│ transfers accepted +│ +300 │ +300 │ = │", said), said
    assert figure("workers killed", said) >= 2
    assert figure("database server killed", said) >= (engine != "sqlite")


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_hundred_thousand_transfers_are_right_though_all_is_killed() -> None:
    said = bank("postgresql", "--seed", 7, timeout=None)
    assert re.search(r"│ transfers accepted +│ +100,000 │ +100,000 │ = │", said), said
    assert figure("workers killed", said) >= 20
    assert figure("database server killed", said) >= 5
    assert "what weakens its durability       nothing" in said


def test_a_server_that_ended_though_nobody_killed_it_is_said_with_what_it_wrote(
    mariadb_server: MariadbServer, tmp_path: Path
) -> None:
    bank = Bank(argparse.Namespace(), seed=1, url=mariadb_server.url(), server=mariadb_server, folder=tmp_path)
    mariadb_server.restart()
    bank.server_lives()
    mariadb_server.kill()
    with pytest.raises(Crashed, match=r"nobody had killed it:\n(.|\n)*ready for connections"):
        bank.server_lives()


def test_what_every_account_must_hold_is_told_by_the_transfers() -> None:
    cents: Counter[int] = Counter()
    for number in range(1, 51):
        transfer = planned(number, 3, 2)
        cents[transfer.payer] -= transfer.cents
        cents[transfer.payee] += transfer.cents
    assert all(held == 100_000 + cents[account] for account, held in balances(50, 3).items())
    assert balances(50, 3) != balances(50, 4)


WRONG = {
    "a transfer lost": ("DELETE FROM booking WHERE number = 3", "  booked: lost", 1),
    "a transfer applied twice": ("INSERT INTO booking VALUES (3)", "  booked: applied twice", 1),
    "one that was taken back": ("INSERT INTO booking VALUES (-3)", "  booked though taken back", 1),
    "a statement lost": ("DELETE FROM statement_line WHERE number = 2", "  statements: lost", 1),
    "a statement written twice": ("INSERT INTO statement_line VALUES (2)", "  statements: written twice", 1),
    "an account that is wrong": (
        "UPDATE account SET cents = cents + 1 WHERE number = 9",
        "accounts with the right balance",
        999,
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_books_that_are_wrong_are_shown(tmp_path: Path, what: str) -> None:
    url = f"sqlite:///{tmp_path / 'bank.db'}"
    database, bus = open_database(url), Bus(url)
    for queue in ("bookings", "statements"):
        bus.queue(queue, int)
    db = await database.connect()
    for table in TABLES:
        await database.execute(db, table)
    async with database.transaction(db):
        for account, cents in balances(4, 1).items():
            await database.execute(db, "INSERT INTO account VALUES (?, ?)", account, cents)
        for number in range(1, 5):
            await database.execute(db, "INSERT INTO transfer VALUES (?, 1)", number)
            await database.execute(db, "INSERT INTO booking VALUES (?)", number)
            await database.execute(db, "INSERT INTO statement_line VALUES (?)", number)
    async with bus:
        assert all(line.right for line in await close_the_books(bus, database, 4, 1))
        statement, name, found = WRONG[what]
        await database.execute(db, statement)
        wrong = [line for line in await close_the_books(bus, database, 4, 1) if not line.right]
    await database.close(db)
    assert Line(name, found, next(line.wanted for line in wrong if line.name == name)) in wrong
