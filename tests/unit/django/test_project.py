"""The app: the setting, `handlers` modules, connections around handlers, and `manage.py easybus`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections
from tests.unit.django.conftest import Place
from tests.unit.django.shop.models import Payment

import easybus
from easybus import Bus, Queue, Router
from easybus.django import database_url, get_bus
from easybus.django.around import DjangoThreads, orm_apart
from easybus.django.discovery import discover

# ------------------------------------------------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (None, r"EASYBUS is missing: write in the settings EASYBUS = 'shop\.bus:bus'"),
        (7, r"a int"),
        ("shop.bus.bus", r"write EASYBUS = 'shop\.bus:bus'"),
        ("nowhere.bus:bus", r"no module 'nowhere'"),
        ("tests.unit.django.shop.bus:buss", r"no 'buss'; it has bus"),
        ("tests.unit.django.shop.bus:emails", r"a BusQueue, no Bus"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_says_what_to_write(
    settings_of_django: Any, named: object, said: str
) -> None:
    settings_of_django.EASYBUS = named
    with pytest.raises(ImproperlyConfigured, match=said):
        get_bus()


made: list[Bus] = []


def create_bus() -> Bus:
    made.append(Bus("memory://"))
    return made[-1]


def test_a_function_is_called_once(settings_of_django: Any) -> None:
    settings_of_django.EASYBUS = f"{__name__}:create_bus"
    module = sys.modules.setdefault(__name__, sys.modules[create_bus.__module__])
    assert module.create_bus is create_bus
    assert get_bus() is get_bus()
    assert len(made) == 1


# -------------------------------------------------------------------------------------------------- handlers modules


def test_handlers_modules_are_found_and_their_routers_included_once() -> None:
    bus = get_bus()
    assert sorted(handler.queue for handler in bus.handlers) == ["emails", "parcels"]
    discover(bus)
    assert sorted(handler.queue for handler in bus.handlers) == ["emails", "parcels"]
    assert bus.threads is DjangoThreads
    assert bus.middleware == (orm_apart,)


def test_a_router_inside_another_is_included_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, outer, bus = Router(), Router(), Bus("memory://")
    inner.handler(Queue("jobs", int))(lambda number: None)
    outer.include(inner)
    outer.handler(Queue("more", int))(lambda number: None)
    for routers in ([inner, outer], [outer, inner]):
        bus = Bus("memory://")
        monkeypatch.setattr("easybus.django.discovery._routers", lambda routers=routers: iter(routers))
        discover(bus)
        assert sorted(handler.queue for handler in bus.handlers) == ["jobs", "more"]


# ------------------------------------------------------------------------------------- connections around handlers


@pytest.fixture
def watched(place: Place) -> Place:
    """PostgreSQL, whose server tells who is connected, with connections that Django would keep for ever."""
    given = connections.settings[place.alias]
    given["OPTIONS"] = {"application_name": place.alias}
    given["CONN_MAX_AGE"] = None
    return place


def connected(place: Place, server: Any) -> int:
    return int(server.psql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{place.alias}'"))


async def until_connected(place: Place, server: Any, number: int) -> None:
    deadline = time.monotonic() + 10.0
    while (found := await asyncio.to_thread(connected, place, server)) != number:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_no_connection_is_left_when_the_threads_of_plain_handlers_end(
    watched: Place, postgresql_server: Any
) -> None:
    bus = Bus("memory://")
    bus.threads = DjangoThreads
    jobs = bus.queue("jobs", int)
    done: list[int] = []

    @jobs.handler(concurrency=3)
    def pay(amount: int) -> None:
        Payment.objects.using(watched.alias).create(amount=amount)
        time.sleep(0.1)
        done.append(amount)

    async with bus.handling():
        await jobs.send_many(list(range(6)))
        async with asyncio.timeout(15):
            while len(done) < 6:
                await asyncio.sleep(0.02)
        await until_connected(watched, postgresql_server, 3)  # as long as CONN_MAX_AGE lets them
    await until_connected(watched, postgresql_server, 0)


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_connection_that_is_too_old_or_broken_is_closed_around_each_message(
    watched: Place, postgresql_server: Any, plain: bool
) -> None:
    bus = Bus("memory://", middleware=[orm_apart])
    bus.threads = DjangoThreads
    jobs = bus.queue("jobs", int)
    connections.settings[watched.alias]["CONN_MAX_AGE"] = None if plain else 0
    connections.settings[watched.alias]["CONN_HEALTH_CHECKS"] = True
    done: list[int] = []

    def pay(amount: int) -> None:
        Payment.objects.using(watched.alias).create(amount=amount)
        done.append(amount)

    async def pay_async(amount: int) -> None:
        await Payment.objects.using(watched.alias).acreate(amount=amount)
        done.append(amount)

    jobs.handler(concurrency=1)(pay if plain else pay_async)
    cut = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{watched.alias}'"
    async with bus.handling():
        for number in (1, 2):
            await jobs.send(number)
            async with asyncio.timeout(15):
                while len(done) < number:
                    await asyncio.sleep(0.02)
            await until_connected(watched, postgresql_server, 1 if plain else 0)
            await asyncio.to_thread(postgresql_server.psql, cut)
    assert done == [1, 2]
    assert await asyncio.to_thread(postgresql_server.psql, "SELECT sum(amount) FROM shop_payment") == "3"


# ---------------------------------------------------------------------------------------------------- database_url


def test_djangos_database_as_a_buss_url(place: Place) -> None:
    bus = Bus(database_url(place.alias))
    orders = bus.queue(f"orders_of_{place.alias}", int)
    bus.blocking.send(orders, 1)
    bus.blocking.close()
    options = {"postgresql": {"schema": "of bus"}, "mariadb": {"prefix": "bus_"}, "sqlite": {}}[place.kind]
    assert all(value.replace(" ", "%20") in database_url(place.alias, **options) for value in options.values())


def test_what_is_no_url_is_said(settings_of_django: Any) -> None:
    given = connections["default"].settings_dict
    name = given["NAME"]
    given["NAME"] = ":memory:"
    try:
        with pytest.raises(ImproperlyConfigured, match=r"\"TEST\": \{\"NAME\""):
            database_url()
    finally:
        given["NAME"] = name


# ------------------------------------------------------------------------------------------------ manage.py easybus

MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "easybus.django", "jobs"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "shop.db"}}
EASYBUS = "project.bus:create_bus"
"""
BUS = """
from easybus import Bus
from easybus.django import database_url

def create_bus():
    return Bus(database_url(), service="project")
"""
HANDLERS = """
import os
from django.db import connection, transaction
from easybus import Queue, Router

router = Router()
jobs = Queue("jobs", int)

@router.handler(jobs, within=transaction.atomic)
def work(number: int):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO done VALUES (%s, %s)", [number, os.getpid()])
"""


class Manage:
    """A project's folder, and its manage.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {
            "manage.py": MANAGE,
            "project/__init__.py": "",
            "project/settings.py": SETTINGS,
            "project/bus.py": BUS,
            "jobs/__init__.py": "",
            "jobs/handlers.py": HANDLERS,
        }.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASYBUS", "DJANGO"))}
        self.env = kept | {"PYTHONPATH": str(Path(easybus.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "manage.py", *words],
                cwd=self.folder, env=self.env, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(self.folder / "shop.db", timeout=10)) as database, database:
            return database.execute(statement).fetchall()

    def until_done(self, numbers: list[int]) -> None:
        deadline = time.monotonic() + 30.0
        while sorted(row[0] for row in self.sql("SELECT number FROM done")) != numbers:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    made = Manage(tmp_path)
    made("migrate", "--verbosity", "0")
    made.sql("CREATE TABLE done (number INT, process INT)")
    return made


@pytest.mark.timeout(180)  # six interpreters, one after the other
def test_the_command_line_has_the_project_as_its_app(manage: Manage) -> None:
    assert "no queues" in manage("easybus", "queues")
    assert "exactly once" in manage("easybus", "check", "--settings", "project.settings").lower()
    assert "CREATE TABLE" in manage("easybus", "schema")
    assert "no dead letters" in manage("easybus", "dead", "list").lower()
    assert "No such command" in manage("easybus", "nonsense", code=2)
    assert "--reload" in manage("easybus", "run", "--help")


def test_what_fails_is_a_command_error_in_call_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EASYBUS_APP", "another:bus")
    with pytest.raises(CommandError):
        call_command("easybus", "nonsense")
    call_command("easybus", "queues", "--json")
    assert os.environ["EASYBUS_APP"] == "another:bus"
    monkeypatch.delenv("EASYBUS_APP")
    call_command("easybus", "queues", "--json")
    assert "EASYBUS_APP" not in os.environ
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [[], []]


@pytest.mark.kills
@pytest.mark.parametrize("how", [["--workers", "2"], ["--reload"], []])
def test_run_handles_in_workers_and_with_reload(manage: Manage, how: list[str]) -> None:
    running = manage.start("easybus", "run", *how)
    try:
        manage("shell", "-c", "from easybus.django import get_bus; from jobs.handlers import jobs; "
               "get_bus().blocking.send_many(jobs, [1, 2, 3])")  # fmt: skip
        manage.until_done([1, 2, 3])
    finally:
        running.send_signal(signal.SIGTERM)
        code = running.wait(20)
    assert code == 0, (manage.folder / "log").read_text()
    (process,) = {row[0] for row in manage.sql("SELECT process FROM done LIMIT 1")}
    assert (process == running.pid) is (how == [])
