"""Where the servers are, read out of the URL and refused with the line to write. Passwords are shown nowhere.

nats://user:password@host:4222,other:4222?prefix=bus&replicas=3&creds=/path&tls_ca=/path&…
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError

OPTIONS = {
    "prefix": "what streams, subjects and the bucket begin with: up to 32 letters, digits and '-' (bus)",
    "replicas": "copies that a cluster keeps of what is declared (1)",
    "timeout": "seconds that a call may take (5)",
    "heartbeat": "seconds between looks whether the server is there (3)",
    "creds": "a file of credentials (JWT and seed)",
    "nkey": "a file with an nkey's seed",
    "tls_ca": "a file of certificate authorities",
    "tls_cert": "a file with the client's certificate",
    "tls_key": "a file with its key",
    "tls_hostname": "the name that the server's certificate bears",
    "tls_first": "1 where the server expects TLS before anything else",
}
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "replicas": (int, 1, 5),
    "timeout": (float, 0.1, 3600),
    "heartbeat": (float, 0.1, 3600),
}
_SPELLING = "write nats://user:password@host:4222"
_PREFIX = re.compile(r"[A-Za-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Address:
    """Servers, and how to be let in, as the URL says."""

    url: str
    """As it may be shown."""
    hosts: tuple[str, ...]
    """URLs without a user."""
    prefix: str = "bus"
    replicas: int = 1
    timeout: float = 5.0
    heartbeat: float = 3.0
    creds: str = ""
    """The path of a file of credentials; empty: none."""
    nkey: str = ""
    """The path of a file with an nkey's seed."""
    login: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """What the client library is told besides: user, password, token, TLS."""


def parse(url: str) -> Address:
    """Read a URL. Raises `ConfigurationError`, with what is allowed."""
    parts = urlsplit(url)
    user_info, _, hosts = parts.netloc.rpartition("@")
    shown = _shown(parts)
    _check(parts, shown)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS:
            known = "; ".join(f"{option}: {what}" for option, what in OPTIONS.items())
            raise ConfigurationError(f"{shown}: unknown option {name!r}; there are {known}")
    prefix = options.get("prefix", "bus")
    if not _PREFIX.fullmatch(prefix) or prefix == "KV":
        raise ConfigurationError(f"{shown}: prefix={prefix!r}; it is {OPTIONS['prefix']}, and not KV")
    listed = tuple(f"{parts.scheme}://{host if _port(host) else f'{host}:4222'}" for host in hosts.split(","))
    login = _login(user_info) | _tls(parts.scheme, options, shown)
    files = {name: options[name] for name in ("creds", "nkey") if name in options}
    return Address(shown, listed, prefix, login=login, **files, **_numbers(options, shown))


def _login(user_info: str) -> dict[str, Any]:
    user, colon, password = user_info.partition(":")
    if colon:
        return {"user": unquote(user), "password": unquote(password)}
    return {"token": unquote(user)} if user else {}


def _tls(scheme: str, options: dict[str, str], shown: str) -> dict[str, Any]:
    if scheme != "tls" and not any(name.startswith("tls_") for name in options):
        return {}
    try:
        context = ssl.create_default_context(cafile=options.get("tls_ca"))
        if "tls_cert" in options:
            context.load_cert_chain(options["tls_cert"], options.get("tls_key"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{shown}: the TLS files cannot be read: {error}") from error
    found: dict[str, Any] = {"tls": context}
    if "tls_hostname" in options:
        found["tls_hostname"] = options["tls_hostname"]
    if options.get("tls_first", "0") not in ("", "0"):
        found["tls_handshake_first"] = True
    return found


def _numbers(options: dict[str, str], shown: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (kind, least, most) in _NUMBERS.items():
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
    user, colon, _ = user_info.partition(":")
    return f"{parts.scheme}://{user if colon else '***' if user else ''}{at}{hosts}" + (
        f"?{parts.query}" if parts.query and "pass" not in parts.query.lower() else ""
    )


def _port(host: str) -> str:
    return "" if host.endswith("]") else host.rpartition(":")[2] if ":" in host else ""


def _check(parts: SplitResult, shown: str) -> None:
    user_info, _, hosts = parts.netloc.rpartition("@")
    for host in hosts.split(","):
        port = _port(host)
        if not host.removesuffix(f":{port}") or (
            ":" in host and not host.endswith("]") and not (port.isdecimal() and port.isascii() and int(port) < 65536)
        ):
            raise ConfigurationError(f"this {parts.scheme}:// URL names no host, or a wrong port; {_SPELLING}")
    if "@" in user_info or ":" in user_info.partition(":")[2]:
        raise ConfigurationError(
            f"this {parts.scheme}:// URL has '@' or ':' in its user or password: write them %40 and %3A; {_SPELLING}"
        )
    if parts.fragment or parts.path.strip("/"):
        raise ConfigurationError(f"a {parts.scheme}:// URL has no path and no '#': {_SPELLING}")
