"""The bus's tables in Django's migrations.

Each migration brings the tables up to what the installed easybus asks for, from whatever version there is: none, an
older one, or today's, where a bus was opened before. So the order of `migrate` and the first start does not matter.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router, transaction
from django.db.migrations.operations.base import Operation

from ..clock import SystemClock
from ..engines.contract import SchemaEngine
from ..engines.registry import create
from ..errors import EasybusError
from .databases import vendor_of
from .project import get_bus

__all__ = ["BusTables", "leave_checkpoints", "remember_names", "tables_in"]

_PORTS = {"postgresql": "5432", "mysql": "3306"}
_MENDED = (3, 51, 3)
"""From this SQLite on a checkpoint may reset the log under other connections."""
_LOCAL = ("", "localhost", "127.0.0.1", "::1", "[::1]")

_names: dict[str, str] = {}
"""Each database's name in the settings: in a test run, the connection has another."""


def remember_names() -> None:
    """Called when Django starts, before a test run gives its databases other names."""
    for alias in connections:
        _names[alias] = str(connections.settings[alias]["NAME"])


def leave_checkpoints(connection: Any, **_: Any) -> None:
    """Called for each new connection: on a file that the bus has open with an old SQLite, only the bus may reset the
    log (see docs/engines.md)."""
    if connection.vendor != "sqlite" or sqlite3.sqlite_version_info >= _MENDED:
        return
    with contextlib.suppress(EasybusError):  # a bus without a URL is said by whoever opens it
        if list(tables_in(connection.alias)):
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA wal_autocheckpoint=0")


class BusTables(Operation):
    """Makes the tables of the project's bus, or brings them up to date, in the database that is being migrated, if its
    engine, its storage or one of its `databases=` lies there. Undoing leaves them: they hold messages."""

    reduces_to_sql = True
    reversible = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The bus's tables are no models."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        alias: str = schema_editor.connection.alias
        if not router.allow_migrate(alias, app_label):
            return
        for engine in tables_in(alias):
            since = 0 if schema_editor.collect_sql else _version(alias, engine)
            for statement in engine.schema(since).split(";\n"):
                if statement.strip():
                    schema_editor.execute(statement, params=None)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Nothing is undone."""

    def describe(self) -> str:
        return "Make the message bus's tables"


def tables_in(alias: str = DEFAULT_DB_ALIAS) -> Iterator[SchemaEngine]:
    """The engines of the project's bus whose tables lie in this database of Django's; none is opened."""
    bus = get_bus()
    urls = [bus.url, *([bus.storage_url] if bus.storage_url else []), *bus.databases]
    for url in dict.fromkeys(urls):
        if vendor_of(url) and _same(url, alias):
            engine = create(_here(url, alias), SystemClock())
            if isinstance(engine, SchemaEngine):
                yield engine


def _same(url: str, alias: str) -> bool:
    """Whether a bus's URL and a database of the settings name the same one, as far as they say."""
    settings: dict[str, Any] = connections[alias].settings_dict
    vendor, parts = connections[alias].vendor, urlsplit(url)
    name = _names.get(alias, str(settings["NAME"]))
    if vendor_of(url) != vendor:
        return False
    if vendor == "sqlite":
        return os.path.realpath(unquote(parts.path.removeprefix("/"))) == os.path.realpath(name)
    host = str(settings["HOST"])
    own = _at("localhost" if host.startswith("/") else host, str(settings["PORT"]), vendor)
    hosts = [_at(*_split(one), vendor) for one in parts.netloc.rpartition("@")[2].split(",")]
    return own in hosts and unquote(parts.path.removeprefix("/")) == name


def _split(host: str) -> tuple[str, str]:
    if host.endswith("]") or ":" not in host:
        return host, ""
    name, _, port = host.rpartition(":")
    return name, port


def _at(host: str, port: str, vendor: str) -> tuple[str, str]:
    return "localhost" if host.lower() in _LOCAL else host.lower(), port or _PORTS[vendor]


def _here(url: str, alias: str) -> str:
    """The URL, with the name that the database has now."""
    if vendor_of(url) == "sqlite":
        return url
    return urlsplit(url)._replace(path="/" + quote(str(connections[alias].settings_dict["NAME"]), safe="")).geturl()


def _version(alias: str, engine: SchemaEngine) -> int:
    try:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute(engine.schema_version())
            row = cursor.fetchone()
    except DatabaseError:
        return 0
    return int(row[0]) if row else 0
