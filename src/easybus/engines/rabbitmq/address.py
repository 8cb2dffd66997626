"""The URL: `amqp[s]://user:password@host[:port][,host2[:port]…]/vhost?option=value`, and the options it may hold."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import pika

from ...errors import ConfigurationError

__all__ = ["Address", "parse"]

_PORTS = {"amqp": 5672, "amqps": 5671}
_OPTIONS = ("heartbeat", "timeout", "settle", "cafile", "certfile", "keyfile", "verify")


@dataclass(frozen=True)
class Address:
    """Where the server is, and who we are there."""

    url: str
    """Without the password: it may be shown."""
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str = field(repr=False)
    vhost: str
    heartbeat: int
    """Seconds: a peer that is silent for twice as long is taken for dead."""
    timeout: float
    """Seconds that any one call may take."""
    settle: float
    """Seconds that a declaration waits after it has made a queue, for the server to note it on disk."""
    tls: ssl.SSLContext | None = field(repr=False)

    def parameters(self, host: str, port: int) -> Any:
        """What pika wants to know to connect to this host, once."""
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self.user, self.password, erase_on_connect=False),
            heartbeat=self.heartbeat,
            socket_timeout=self.timeout,
            stack_timeout=self.timeout,
            connection_attempts=1,
            ssl_options=None if self.tls is None else pika.SSLOptions(self.tls, host),
            client_properties={"connection_name": "easybus"},
        )


def parse(url: str) -> Address:
    """Read the URL. Raises `ConfigurationError`, which never holds the password."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    place, slash, vhost = rest.partition("/")
    account, _, hosts = place.rpartition("@")
    user, _, password = account.partition(":")
    options = _options(query)
    shown = f"{scheme}://{user + '@' if user else ''}{hosts}{slash}{vhost}"
    if query:
        shown += f"?{query}"
    return Address(
        url=shown,
        hosts=tuple(_host(host, _PORTS[scheme]) for host in (hosts or "localhost").split(",")),
        user=unquote(user) or "guest",
        password=unquote(password) or "guest",
        vhost=unquote(vhost) or "/",
        heartbeat=int(_number(options, "heartbeat", 10, least=1)),
        timeout=_number(options, "timeout", 10, least=0.1),
        settle=_number(options, "settle", 1.2, least=0),
        tls=_tls(options) if scheme == "amqps" else _no_tls(options),
    )


def _host(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, number = text, "", ""
    if not colon:
        host, number = text, str(port)
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ConfigurationError(
            "the URL has a part that is no host:port; write amqp://user:password@host:5672,host2/vhost"
        )
    return host.strip("[]"), int(number)


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigurationError(f"amqp:// knows no option {quote(name)!r}; there are {', '.join(_OPTIONS)}")
    return options


def _number(options: dict[str, str], name: str, default: float, *, least: float) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = -1.0
    if not least <= value <= 3600:
        raise ConfigurationError(f"{name}={options[name]} in the URL: it is {least} to 3600 seconds")
    return value


def _no_tls(options: dict[str, str]) -> None:
    given = [name for name in ("cafile", "certfile", "keyfile", "verify") if name in options]
    if given:
        raise ConfigurationError(f"{given[0]}= is for TLS; write amqps:// instead of amqp://")


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """A context that verifies, unless `verify=no` was written."""
    verify = options.get("verify", "yes")
    if verify not in ("yes", "no"):
        raise ConfigurationError(f"verify={verify} in the URL: it is yes or no")
    try:
        context = ssl.create_default_context(cafile=options.get("cafile"))
        if "certfile" in options:
            context.load_cert_chain(options["certfile"], options.get("keyfile"))
    except OSError as error:
        raise ConfigurationError(f"the certificates that the URL names cannot be read: {error}") from error
    if verify == "no":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
