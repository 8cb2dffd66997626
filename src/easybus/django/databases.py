"""Django's databases as the URLs that a bus takes."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

__all__ = ["database_url", "vendor_of"]

_SCHEMES = {"postgresql": ("postgresql", 5432), "mysql": ("mysql", 3306)}


def database_url(using: str = "default", **options: str | float) -> str:
    """The URL of one of Django's databases, as its settings are now: in a test run, the test database's.

    Args:
        using: its name in `DATABASES`.
        options: of the bus's URL, such as `schema="bus"` on PostgreSQL, or `prefix="bus_"` on MySQL.

    Raises:
        ImproperlyConfigured: no bus can lie there (SQLite in memory, another kind of database), or the settings do not
            say where it is (PostgreSQL's `service`, MySQL's `read_default_file`).
    """
    connection = connections[using]
    given: dict[str, Any] = connection.settings_dict
    if connection.vendor == "sqlite":
        return _sqlite(using, str(given["NAME"]), options)
    if connection.vendor not in _SCHEMES:
        raise ImproperlyConfigured(
            f"DATABASES[{using!r}] is {connection.vendor}; a bus lies in PostgreSQL, MySQL, MariaDB or SQLite: name "
            "its database by a URL of its own"
        )
    elsewhere = {"service", "passfile", "read_default_file", "unix_socket"} & set(given["OPTIONS"])
    if not given["NAME"] or elsewhere or str(given["HOST"]).startswith("/"):
        why = f"OPTIONS has {', '.join(sorted(elsewhere))}" if elsewhere else "HOST and NAME do not name a host"
        raise ImproperlyConfigured(f"DATABASES[{using!r}] gives no URL ({why}): write the bus's URL yourself")
    scheme, port = _SCHEMES[connection.vendor]
    user = quote(str(given["USER"]), safe="")
    password = f":{quote(str(given['PASSWORD']), safe='')}" if given["PASSWORD"] else ""
    host = str(given["HOST"] or "localhost")
    host = f"[{host}]" if ":" in host else host
    name = quote(str(given["NAME"]), safe="")
    tls = {
        key: value for key, value in given["OPTIONS"].items() if key in ("sslmode", "sslrootcert", "sslcert", "sslkey")
    }
    query = urlencode({**tls, **options}, quote_via=quote)
    account = f"{user}{password}@" if user else ""
    return f"{scheme}://{account}{host}:{given['PORT'] or port}/{name}{f'?{query}' if query else ''}"


def vendor_of(url: str) -> str:
    """What Django calls the kind of database that a bus's URL names; empty: it is none."""
    scheme = url.partition(":")[0]
    return scheme if scheme in ("postgresql", "mysql", "sqlite") else ""


def _sqlite(using: str, name: str, options: dict[str, str | float]) -> str:
    if name == ":memory:" or name.startswith("file:"):
        raise ImproperlyConfigured(
            f"DATABASES[{using!r}] is SQLite in memory ({name}), which no bus can open; name a file. In tests that is "
            '"TEST": {"NAME": BASE_DIR / \'test.sqlite3\'}'
        )
    query = urlencode({"library": "sqlite3", **options}, quote_via=quote)
    return f"sqlite:///{quote(name)}?{query}"
