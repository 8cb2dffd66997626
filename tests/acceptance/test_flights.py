"""The demo, run as a user runs it, on a sample; and what it does when a total is wrong."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from examples.servers import ENGINES
from tests.servers import missing

ROOT = Path(__file__).parents[2]
FLIGHTS = 1500
KILLS = 6
Demo = tuple[subprocess.CompletedProcess[str], Path]
pytestmark = pytest.mark.timeout(180)


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One run for all tests, and the folder that it kept."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    arguments = ("--seed", 11, "--flights", FLIGHTS, "--kills", KILLS, "--keep", folder)
    return run("examples.flights", *arguments), folder


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return int(found[1].replace(",", ""))


@pytest.mark.alone
def test_every_total_is_equal_though_processes_were_killed(demo: Demo) -> None:
    ran, _ = demo
    assert ran.returncode == 0, ran.stdout
    totals = re.findall(r"│ (.+?) +│ +([\d,]+) │ +([\d,]+) │ = │", ran.stdout)
    assert len(totals) > 20, ran.stdout
    assert all(bus == report for _, bus, report in totals)
    assert ("flights in the ledger", "1,500", "1,500") in totals
    assert number(r"processes killed +([\d,]+)", ran.stdout) == KILLS
    assert number(r"the sender ([\d,]+) times", ran.stdout) >= 1
    assert ran.stdout.count("killed, started again") == KILLS


@pytest.mark.alone
def test_failures_were_retried_and_spoilt_records_mended_and_replayed(
    demo: Demo,
) -> None:
    ran, _ = demo
    assert number(r"retried +([\d,]+)", ran.stdout) > 0
    letters = number(r"([\d,]+) dead letters, to be mended", ran.stdout)
    assert letters >= 6
    assert number(r"dead letters +([\d,]+) mended and replayed", ran.stdout) == letters


@pytest.mark.alone
@pytest.mark.parametrize(
    ("file", "statement", "wrong"),
    [
        ("flights.db", "UPDATE departures SET flights = flights + 1 WHERE airport = 'JFK'", "JFK: flights"),
        ("flights.db", "DELETE FROM ledger WHERE record = 1", "flights in the ledger"),
        ("flights.db", "DELETE FROM rebooking", "rebooked flights"),
        ("partner.db", "INSERT INTO credit SELECT * FROM credit LIMIT 1", "United: miles credited"),
    ],
    ids=["a flight counted twice", "a flight lost", "a total that is not there", "miles credited twice"],
)
def test_a_total_that_is_wrong_is_shown_and_exits_1(
    demo: Demo, tmp_path: Path, file: str, statement: str, wrong: str
) -> None:
    _, folder = demo
    for name in ("flights.db", "partner.db"):
        shutil.copy(folder / name, tmp_path / name)
    assert run("examples.flights.totals", tmp_path / "flights.db", "--flights", FLIGHTS).returncode == 0
    with closing(sqlite3.connect(tmp_path / file)) as db, db:
        assert db.execute(statement).rowcount >= 1
    compared = run("examples.flights.totals", tmp_path / "flights.db", "--flights", FLIGHTS)
    assert compared.returncode == 1
    off = [line for line in compared.stdout.splitlines() if "off by" in line]
    assert off
    assert any(wrong in line for line in off), off


def test_another_engine_is_a_clear_error() -> None:
    ran = run("examples.flights", "--engine", "redis://localhost", "--flights", 10)
    assert ran.returncode == 1
    assert "sqlite" in ran.stdout
    assert "Traceback" not in ran.stdout


@pytest.mark.kills
@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"sqlite"}))
def test_the_messages_may_go_by_any_engine(engine: str) -> None:
    ran = run("examples.flights", "--engine", engine, "--seed", 5, "--flights", 400, "--kills", 3)
    if "no server for" in ran.stdout:
        missing(ran.stdout)
    assert ran.returncode == 0, ran.stdout
    assert "every total is equal" in ran.stdout
    assert number(r"processes killed +([\d,]+)", ran.stdout) == 3
