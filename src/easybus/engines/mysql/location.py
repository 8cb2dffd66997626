"""Where the bus's tables lie, read out of the URL and refused with the line to write. Passwords are shown nowhere.

mysql://user:password@host:3306,other:3306/database?prefix=easybus_&ssl_mode=verify_identity&ssl_ca=/etc/ca.pem&…
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError
from .names import LONGEST_TABLE, Names

OPTIONS = {
    "prefix": "what the names of the bus's tables begin with (easybus_)",
    "connections": "how many connections the bus opens at most (10)",
    "transactions": "how many transactions handlers with within= may have open at once (20)",
    "timeout": "seconds that a call may take (10)",
    "idle_timeout": "seconds after which the server ends a handler's transaction that does nothing (30)",
    "ssl_mode": "disabled, required, verify_ca or verify_identity (disabled; verify_identity with ssl_ca=)",
    "ssl_ca": "a file with the certificates that are trusted (the system's)",
    "ssl_cert": "a file with this client's certificate",
    "ssl_key": "a file with its key",
}
SSL_MODES = ("disabled", "required", "verify_ca", "verify_identity")
PORT = 3306
_SPELLING = "write mysql://user:password@host:3306/database"


@dataclass(frozen=True, slots=True)
class Location:
    """One bus's tables in one database, as the URL says."""

    url: str
    """As it may be shown."""
    names: Names
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str = field(repr=False)
    connections: int = 10
    transactions: int = 20
    timeout: float = 10.0
    idle_timeout: float = 30.0
    tls: tuple[str, str, str, str] = ("disabled", "", "", "")
    """Mode, trusted certificates, this client's certificate, its key."""

    @property
    def database(self) -> str:
        """The database's name."""
        return self.names.database

    def tls_context(self) -> ssl.SSLContext | None:
        """How to encrypt, if at all. Raises `ConfigurationError` for files that cannot be read."""
        mode, trusted, certificate, key = self.tls
        if mode == "disabled":
            return None
        try:
            context = ssl.create_default_context(cafile=trusted or None)
            if certificate:
                context.load_cert_chain(certificate, key or None)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(f"{self.url}: the files of ssl_ca=, ssl_cert= or ssl_key=: {error}") from error
        context.check_hostname = mode == "verify_identity"
        context.verify_mode = ssl.CERT_NONE if mode == "required" else ssl.CERT_REQUIRED
        return context


def locate(url: str) -> Location:
    """Read a URL. Raises `ConfigurationError`, with what is allowed."""
    parts = urlsplit(url)
    shown = _shown(parts)
    hosts = _hosts(parts)
    database = unquote(parts.path.removeprefix("/"))
    if not database or set(database) & set("/%\0") or len(database) > 64:
        raise ConfigurationError(f"{shown}: the database is missing, or its name is none; {_SPELLING}")
    if parts.fragment:
        raise ConfigurationError(f"{shown}: '#' must be written %23; {_SPELLING}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS:
            known = "; ".join(f"{option}: {what}" for option, what in OPTIONS.items())
            raise ConfigurationError(f"{shown}: unknown option {name!r}; there are {known}")
    prefix = options.get("prefix", "easybus_")
    longest = 64 - LONGEST_TABLE
    if set(prefix) & set("%\0") or len(prefix) > longest or any(ord(letter) > 0xFFFF for letter in prefix):
        raise ConfigurationError(f"{shown}: prefix= has up to {longest} characters, no '%', none past U+FFFF")
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return Location(
        shown,
        Names(database, prefix),
        hosts,
        unquote(user),
        unquote(password),
        tls=_tls(options, shown),
        **_numbers(options, shown),
    )


def _tls(options: dict[str, str], shown: str) -> tuple[str, str, str, str]:
    trusted = options.get("ssl_ca", "")
    mode = options.get("ssl_mode", "verify_identity" if trusted else "disabled").lower()
    if mode not in SSL_MODES:
        raise ConfigurationError(f"{shown}: ssl_mode= is one of {', '.join(SSL_MODES)}")
    return mode, trusted, options.get("ssl_cert", ""), options.get("ssl_key", "")


def _numbers(options: dict[str, str], shown: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    limits: dict[str, tuple[type[int] | type[float], float, float]] = {
        "connections": (int, 2, 1000),
        "transactions": (int, 1, 1000),
        "timeout": (float, 0.1, 3600),
        "idle_timeout": (float, 1, 86_400),
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


def _hosts(parts: SplitResult) -> tuple[tuple[str, int], ...]:
    user_info, _, hosts = parts.netloc.rpartition("@")
    found: list[tuple[str, int]] = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            name, host = "", ""
        name = name if colon else host
        if not name:
            raise ConfigurationError(f"this {parts.scheme}:// URL names no host, or a wrong port; {_SPELLING}")
        found.append((name.strip("[]"), int(port) if colon else PORT))
    if "@" in user_info or ":" in user_info.partition(":")[2]:
        raise ConfigurationError(
            f"this {parts.scheme}:// URL has '@' or ':' in its user or password: write them %40 and %3A; {_SPELLING}"
        )
    return tuple(found)
