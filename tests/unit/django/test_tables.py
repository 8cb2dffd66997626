"""`manage.py migrate` makes the bus's tables where the bus lies, and only there."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connections, router, transaction
from tests.unit.django.conftest import Place, add_database
from tests.unit.transactions.shop import Shop

from easybus import Bus
from easybus.clock import SystemClock
from easybus.django.tables import tables_in
from easybus.engines.mysql import schema as of_mysql
from easybus.engines.postgresql import schema as of_postgresql
from easybus.engines.registry import create
from easybus.engines.sqlite import schema as of_sqlite

Project = Callable[[Bus], Bus]
NEWEST = {"sqlite": of_sqlite.VERSION, "postgresql": of_postgresql.VERSION, "mariadb": of_mysql.VERSION}


def version(alias: str, url: str) -> int | None:
    """Of the tables that there are; None: there are none."""
    engine: Any = create(url, SystemClock())
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute(engine.schema_version())
            return int(cursor.fetchone()[0])
    except DatabaseError:
        return None


def migrate(alias: str) -> None:
    call_command("migrate", "easybus", database=alias, verbosity=0)


def back(alias: str) -> None:
    call_command("migrate", "easybus", "zero", database=alias, verbosity=0)


def sends(place: Place, bus: Bus) -> bool:
    shop = Shop(bus, place.url)
    bus.blocking.open()
    with closing(bus.blocking), transaction.atomic(using=place.alias):
        bus.blocking.send(shop.orders, 1, within=connections[place.alias])
    return True


def test_a_migration_makes_the_tables_and_a_bus_finds_them(place: Place, project: Project) -> None:
    bus = project(Bus(place.url))
    assert version(place.alias, place.url) is None
    migrate(place.alias)
    assert version(place.alias, place.url) == NEWEST[place.kind]
    assert sends(place, bus)


def test_after_a_bus_has_made_them_a_migration_changes_nothing_and_again_neither(
    place: Place, project: Project
) -> None:
    bus = project(Bus(place.url))
    assert sends(place, bus)
    migrate(place.alias)
    back(place.alias)
    migrate(place.alias)
    assert version(place.alias, place.url) == NEWEST[place.kind]
    assert sends(place, bus)


@pytest.mark.parametrize("kind", ["mariadb"])
def test_the_tables_of_an_older_easybus_are_brought_up_to_date_by_the_next_migration(
    place: Place, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = project(Bus(place.url))
    with monkeypatch.context() as older:
        this_version = of_mysql._THIS_VERSION.replace(f"'{of_mysql.VERSION}'", "'1'")
        for name, value in (("VERSION", 1), ("MIGRATIONS", of_mysql.MIGRATIONS[:1]), ("_THIS_VERSION", this_version)):
            older.setattr(of_mysql, name, value)
        call_command("migrate", "easybus", "0001", database=place.alias, verbosity=0)
        assert version(place.alias, place.url) == 1
    migrate(place.alias)
    assert version(place.alias, place.url) == NEWEST[place.kind]
    assert sends(place, bus)


def test_a_storage_in_another_database_than_the_engine_gets_its_tables_there(place: Place, project: Project) -> None:
    project(Bus("memory://", storage=place.url))
    call_command("migrate", "easybus", database="default", verbosity=0)
    assert version(place.alias, place.url) is None
    migrate(place.alias)
    assert version(place.alias, place.url) == NEWEST[place.kind]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_database_router_that_says_no_is_heeded(
    place: Place, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(Bus(place.url))
    monkeypatch.setattr(router, "routers", [OnlyDefault()])
    migrate(place.alias)
    assert version(place.alias, place.url) is None


class OnlyDefault:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return db == "default"


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_in_a_test_run_the_tables_are_made_in_the_test_database(
    place: Place, project: Project, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(f"{place.kind}_server")
    project(Bus(place.url))
    test_name = server.database().rpartition("/")[2]
    given = dict(connections.settings[place.alias])
    add_database("in_test", given)
    from easybus.django import tables

    tables._names["in_test"] = given["NAME"]
    connections["in_test"].settings_dict["NAME"] = test_name
    try:
        migrate("in_test")
        (engine,) = tables_in("in_test")
        with connections["in_test"].cursor() as cursor:
            cursor.execute(engine.schema_version())
            assert int(cursor.fetchone()[0]) == NEWEST[place.kind]
        assert version(place.alias, place.url) is None
    finally:
        connections["in_test"].close()
        del connections["in_test"], connections.settings["in_test"], tables._names["in_test"]


def test_sqlmigrate_shows_the_statements(place: Place, project: Project) -> None:
    project(Bus(place.url))
    shown = io.StringIO()
    call_command("sqlmigrate", "easybus", "0001", database=place.alias, stdout=shown)
    assert "CREATE TABLE" in shown.getvalue()
    assert version(place.alias, place.url) is None


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "easybus", "--check", "--dry-run", verbosity=0)


def test_a_url_is_known_by_host_port_and_name(project: Project, tmp_path: Path) -> None:
    add_database(
        "known", {"ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "", "PORT": "", "USER": "u"}
    )
    try:
        for url, same in {
            "postgresql://u:p@localhost/shop": True,
            "postgresql://u:p@127.0.0.1:5432/shop?schema=bus": True,
            "postgresql://u:p@[::1]/shop": True,
            "postgresql://u:p@far,localhost/shop": True,
            "postgresql://u:p@localhost:5433/shop": False,
            "postgresql://u:p@far/shop": False,
            "postgresql://u:p@localhost/other": False,
            "mysql://u:p@localhost/shop": False,
            f"sqlite:///{tmp_path}/shop": False,
            "memory://": False,
        }.items():
            project(Bus(url))
            assert bool(list(tables_in("known"))) is same, url
    finally:
        del connections["known"], connections.settings["known"]
