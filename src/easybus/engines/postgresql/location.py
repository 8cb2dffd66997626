"""Where the bus's tables lie, read out of the URL and refused with the line to write. Passwords are shown nowhere.

postgresql://user:password@host:5432,other:5432/database?schema=easybus&prefix=&sslmode=verify-full&…
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from ...errors import ConfigurationError
from .names import LONGEST_TABLE, Names

OPTIONS = {
    "schema": "the schema of the bus's tables (easybus)",
    "prefix": "what their names begin with (nothing)",
    "connections": "how many connections the bus opens at most, besides one that listens (10)",
    "transactions": "how many transactions handlers with within= may have open at once (20)",
    "timeout": "seconds that a call may take (10)",
    "idle_timeout": "seconds after which the server ends a handler's transaction that does nothing (30)",
    "statement_cache_size": "0 behind a PgBouncer that pools by transaction",
}
PASSED_ON = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "target_session_attrs",
    "application_name",
    "passfile",
)
"""What the client library reads itself."""
PORT = 5432
_SPELLING = "write postgresql://user:password@host:5432/database"


@dataclass(frozen=True, slots=True)
class Location:
    """One bus's tables in one database, as the URL says."""

    url: str
    """As it may be shown."""
    names: Names
    dsn: str = field(repr=False)
    """As the client library takes it, with the password."""
    hosts: tuple[tuple[str, int], ...] = ()
    """All of them; one of them is used."""
    connections: int = 10
    transactions: int = 20
    timeout: float = 10.0
    idle_timeout: float = 30.0
    statement_cache_size: int | None = None


def locate(url: str) -> Location:
    """Read a URL. Raises `ConfigurationError`, with what is allowed."""
    parts = urlsplit(url)
    shown = _shown(parts)
    if parts.fragment:
        raise ConfigurationError(f"{shown}: '#' must be written %23; {_SPELLING}")
    ours: dict[str, str] = {}
    theirs: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in OPTIONS:
            ours[name] = value
        elif name in PASSED_ON:
            theirs[name] = value
        else:
            known = "; ".join(f"{option}: {what}" for option, what in OPTIONS.items())
            raise ConfigurationError(
                f"{shown}: unknown option {name!r}; there are {known}; and {', '.join(PASSED_ON)} as in libpq"
            )
    hosts = _hosts(parts, shown)
    if len(hosts) > 1:
        theirs.setdefault("target_session_attrs", "read-write")  # of several hosts, the one that takes writes
    if "sslrootcert" in theirs:
        theirs.setdefault("sslmode", "verify-full")  # who names an authority wants the server verified
    dsn = f"postgresql://{parts.netloc}{parts.path}" + (f"?{urlencode(theirs, quote_via=quote)}" if theirs else "")
    return Location(shown, _names(ours, shown), dsn, hosts, **_numbers(ours, shown))


def _names(options: dict[str, str], shown: str) -> Names:
    schema, prefix = options.get("schema", "easybus"), options.get("prefix", "")
    if not schema or "\0" in schema + prefix:
        raise ConfigurationError(f"{shown}: schema= is empty, or holds a NUL; leave it out for schema=easybus")
    longest = 63 - LONGEST_TABLE
    if len(schema.encode()) > 63 or len(prefix.encode()) > longest:
        raise ConfigurationError(f"{shown}: PostgreSQL's names end at 63 bytes: schema= has 63, prefix= {longest}")
    return Names(schema, prefix)


def _numbers(options: dict[str, str], shown: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    limits: dict[str, tuple[type[int] | type[float], float, float]] = {
        "connections": (int, 2, 1000),
        "transactions": (int, 1, 1000),
        "timeout": (float, 0.1, 3600),
        "idle_timeout": (float, 1, 86_400),
        "statement_cache_size": (int, 0, 100_000),
    }
    for name, (kind, least, most) in limits.items():
        if name not in options:
            continue
        try:
            found[name] = kind(options[name])
        except ValueError:
            found[name] = least - 1
        if not least <= found[name] <= most:
            raise ConfigurationError(f"{shown}: {name}={options[name]!r}; it is a number from {least:g} to {most:g}")
    return found


def _shown(parts: SplitResult) -> str:
    user_info, at, hosts = parts.netloc.rpartition("@")
    user = user_info.partition(":")[0]
    query = f"?{parts.query}" if parts.query and "password" not in parts.query.lower() else ""
    return f"{parts.scheme}://{user}{at}{hosts}{parts.path}{query}"


def _hosts(parts: SplitResult, shown: str) -> tuple[tuple[str, int], ...]:
    user_info, _, hosts = parts.netloc.rpartition("@")
    found: list[tuple[str, int]] = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            name = ""
        if not (name if colon else host):
            raise ConfigurationError(f"this postgresql:// URL names no host, or a wrong port; {_SPELLING}")
        found.append(((name if colon else host).strip("[]"), int(port) if colon else PORT))
    if "@" in user_info or ":" in user_info.partition(":")[2]:
        raise ConfigurationError(
            f"this postgresql:// URL has '@' or ':' in its user or password: write them %40 and %3A; {_SPELLING}"
        )
    if not parts.path.strip("/"):
        raise ConfigurationError(f"{shown}: the database is missing; {_SPELLING}")
    return tuple(found)
