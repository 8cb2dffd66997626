"""Django, set up once in this process, and databases of each kind beside its default one."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import django
import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.unit.django.settings"

try:  # mysqlclient where it is installed: it needs MySQL's headers
    import MySQLdb
except ModuleNotFoundError:
    import pymysql

    pymysql.install_as_MySQLdb()
else:
    del MySQLdb

django.setup()

from django.db import connections  # noqa: E402
from tests.unit.django.settings import FOLDER  # noqa: E402

from easybus import Bus  # noqa: E402

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _no_files_are_left() -> Iterator[None]:
    yield
    connections.close_all()
    shutil.rmtree(FOLDER, ignore_errors=True)


@dataclass
class Place:
    """A database that Django and a bus share."""

    alias: str
    kind: str
    url: str
    """The bus's."""

    @property
    def connection(self) -> Any:
        """Of this thread."""
        return connections[self.alias]

    def payments(self) -> list[int]:
        """What is committed, as of now."""
        from tests.unit.django.shop.models import Payment

        return sorted(Payment.objects.using(self.alias).values_list("amount", flat=True))


def settings_of(request: pytest.FixtureRequest, kind: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Django's, and the URL of a bus with tables of its own in the same database."""
    if kind == "sqlite":
        path = folder / "shop.db"
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}, f"sqlite:///{path}?library=sqlite3"
    if kind == "postgresql":
        server = request.getfixturevalue("postgresql_server")
        engine, name, url = "django.db.backends.postgresql", "postgres", server.schema()
    else:
        server = request.getfixturevalue("mariadb_server")
        engine, name, url = "django.db.backends.mysql", "test", server.prefix()
    account, _, host = url.partition("://")[2].partition("/")[0].rpartition("@")
    user, _, password = account.partition(":")
    return {
        "ENGINE": engine,
        "NAME": name,
        "USER": user,
        "PASSWORD": password,
        "HOST": host.partition(":")[0],
        "PORT": host.partition(":")[2],
    }, url


def add_database(alias: str, given: dict[str, Any]) -> None:
    """As if it stood in DATABASES."""
    made = connections.configure_settings({"default": connections.settings["default"], alias: given})
    connections.settings[alias] = made[alias]


@pytest.fixture
def project(settings_of_django: Any) -> Iterator[Callable[[Bus], Bus]]:
    """Makes a bus the project's own, as if the setting named it."""
    from easybus.django import project

    named: list[str] = []

    def name(bus: Bus) -> Bus:
        named.append(f"tests.project_{next(_numbers)}:bus")
        project._made[named[-1]] = bus
        settings_of_django.EASYBUS = named[-1]
        return bus

    yield name
    for one in named:
        del project._made[one]


@pytest.fixture
def settings_of_django() -> Iterator[Any]:
    """Django's settings; what is changed is as before afterwards."""
    from django.conf import settings
    from django.test.utils import override_settings

    with override_settings():
        yield settings


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Place]:
    """The database, with an empty table for payments."""
    from tests.unit.django.shop.models import Payment

    alias = f"{kind}_{next(_numbers)}"
    given, url = settings_of(request, kind, tmp_path)
    add_database(alias, given)
    place = Place(alias, kind, url)
    with place.connection.schema_editor() as editor:
        if Payment._meta.db_table in place.connection.introspection.table_names():
            editor.delete_model(Payment)
        editor.create_model(Payment)
        if "django_migrations" in place.connection.introspection.table_names():  # of a test before this one
            editor.execute("DROP TABLE django_migrations")
    place.connection.close()
    yield place
    place.connection.close()
    del connections.settings[alias]
