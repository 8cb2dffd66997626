"""Where the server is and how it is spoken to: read out of the URL, refused with the line to write.

redis://[user:password@]host[:6379][/database]                rediss:// the same over TLS
redis+sentinel://[user:password@]host[:26379],…/name[/database]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ...errors import ConfigurationError

_SPELLING = "write redis://localhost:6379/0, rediss://… for TLS, or redis+sentinel://host1,host2/mymaster"
_SENTINEL_ONLY = ("sentinel_username", "sentinel_password")
_TLS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ca": ("ssl_ca_certs", str),
    "cert": ("ssl_certfile", str),
    "key": ("ssl_keyfile", str),
    "verify": ("ssl_cert_reqs", {"full": "required", "ca": "required", "none": "none"}.__getitem__),
}
"""Options of rediss://, and what the client calls them."""


@dataclass(frozen=True, slots=True)
class Location:
    """One server, as its URL says."""

    url: str
    """Without passwords."""
    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    service: str = ""
    """The name that Sentinel knows the master by; empty: `hosts` is the server itself."""
    prefix: str = "easybus"
    timeout: float = 5.0
    replicas: int = 0
    """How many must have what was written before it counts."""
    accept_eviction: bool = False
    accept_everysec: bool = False
    """Whether the last seconds before a server's death may be lost."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] | None = None
    """The client's options for TLS; None: without."""


def locate(url: str) -> Location:
    """Read a URL. Raises `ConfigurationError`, with what is allowed; a password is never shown."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    secure, sentinel = parts.scheme.startswith("rediss"), parts.scheme.endswith("+sentinel")
    username, _, password = user.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    shown = f"{parts.scheme}://{f'{username}@' if username else ''}{hosts}{parts.path}"
    rest = "&".join(f"{name}={value}" for name, value in options.items() if name not in _SENTINEL_ONLY)
    shown += f"?{rest}" if rest else ""
    if parts.fragment:
        raise ConfigurationError(f"{shown}: '#' must be written %23; {_SPELLING}")
    found = tuple(_host(shown, host, 26379 if sentinel else 6379) for host in hosts.split(",") if host)
    if not found:
        raise ConfigurationError(f"{shown}: the host is missing; {_SPELLING}")
    if len(found) > 1 and not sentinel:
        raise ConfigurationError(f"{shown}: several hosts are for Sentinel; {_SPELLING}")
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = path.pop(0) if sentinel and path else ""
    if sentinel and not service:
        raise ConfigurationError(f"{shown}: the name that Sentinel knows the master by is missing; {_SPELLING}")
    if len(path) > 1 or not all(part.isascii() and part.isdecimal() for part in path):
        raise ConfigurationError(f"{shown}: a database is a number; {_SPELLING}")
    return Location(
        url=shown,
        hosts=found,
        database=int(path[0]) if path else 0,
        service=service,
        username=unquote(username) or None,
        password=unquote(password) if at and password else None,
        **_options(shown, options, secure=secure, sentinel=sentinel),
    )


def _host(shown: str, text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or port
    except ValueError as error:
        raise ConfigurationError(f"{shown}: {text} is no host ({error}); {_SPELLING}") from None


def _options(shown: str, options: dict[str, str], *, secure: bool, sentinel: bool) -> dict[str, Any]:
    known: dict[str, Any] = {}
    tls: dict[str, Any] = {"ssl_check_hostname": True}
    for name, value in options.items():
        try:
            if name == "prefix" and value:
                known["prefix"] = value
            elif name == "timeout" and 0 < float(value) < 3600:
                known["timeout"] = float(value)
            elif name == "replicas" and 0 <= int(value) < 100:
                known["replicas"] = int(value)
            elif name == "eviction" and value in ("accept", "refuse"):
                known["accept_eviction"] = value == "accept"
            elif name == "durability" and value in ("always", "everysec"):
                known["accept_everysec"] = value == "everysec"
            elif sentinel and name in _SENTINEL_ONLY:
                known[name] = value
            elif secure and name in _TLS:
                option, read = _TLS[name]
                tls[option] = read(value)
                if name == "verify":
                    tls["ssl_check_hostname"] = value == "full"
            else:
                raise ValueError(name)
        except (ValueError, KeyError):
            value = "…" if name in _SENTINEL_ONLY else value
            allowed = ["prefix=shop", "timeout=5", "replicas=1", "eviction=accept", "durability=everysec"]
            allowed += [f"{name}=…" for name in _SENTINEL_ONLY] if sentinel else []
            allowed += ["ca=FILE", "cert=FILE", "key=FILE", "verify=full|ca|none"] if secure else []
            raise ConfigurationError(
                f"{shown}: unknown option {name}={value}; there are {', '.join(allowed)}"
            ) from None
    return known | {"tls": tls if secure else None}
