"""URL scheme → engine, by name: the only place that knows concrete engines. One is imported when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping

from ..clock import Clock
from ..errors import ConfigurationError, MissingExtra
from .contract import Engine

__all__ = ["ENGINES", "create"]

ENGINES: Mapping[str, tuple[str, str]] = {
    # scheme: (room, the extra that it needs, or "")
    "memory": ("memory", ""),
    "sqlite": ("sqlite", ""),
    "postgresql": ("postgresql", "postgresql"),
    "mysql": ("mysql", "mysql"),
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "redis+sentinel": ("redis", "redis"),
    "rediss+sentinel": ("redis", "redis"),
    "amqp": ("rabbitmq", "rabbitmq"),
    "amqps": ("rabbitmq", "rabbitmq"),
    "nats": ("nats", "nats"),
    "tls": ("nats", "nats"),
}


def create(url: str, clock: Clock) -> Engine:
    """The engine of `url`, not opened yet.

    Raises:
        ConfigurationError: the URL names no engine, or the engine refuses it.
        MissingExtra: the engine's packages are not installed.
    """
    scheme = _scheme(url)
    known = ENGINES.get(scheme)
    if known is None:
        given = f"its scheme is {scheme!r}" if scheme else "it has no scheme"
        raise ConfigurationError(
            f"no engine for this URL: {given}; there are {', '.join(f'{scheme}://' for scheme in ENGINES)}"
        )
    room, extra = known
    try:
        module = importlib.import_module(f"easybus.engines.{room}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("easybus") or not extra:
            raise
        package = error.name.partition(".")[0]
        raise MissingExtra(f"{scheme}:// needs the package {package}: pip install 'easybus[{extra}]'") from error
    engine: Engine = module.create(url, clock)
    return engine


def _scheme(url: str) -> str:
    """The URL's scheme. Refuses, and does not show, what an engine would read otherwise than it was meant."""
    from urllib.parse import urlsplit  # `import easybus` does without it

    from ..shown import astray

    scheme = None
    if not astray(url):
        with contextlib.suppress(ValueError):  # whose text would show the URL
            scheme = urlsplit(url).scheme
    if scheme is None:
        raise ConfigurationError(
            "this URL cannot be read as it was meant; write scheme://user:password@host, and in user, password, path "
            "and options what is no letter or digit as %XX: '/' is %2F, '?' %3F, '#' %23, '@' %40, '[' %5B, ']' %5D"
        )
    return scheme
