"""URL scheme → engine, by name: the only place that knows concrete engines. One is imported when it is asked for."""

from __future__ import annotations

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
    from urllib.parse import urlsplit  # `import easybus` does without it

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"this is no URL ({error}); write one such as sqlite:///shop.db") from None
    known = ENGINES.get(parts.scheme)
    if known is None:
        given = f"its scheme is {parts.scheme!r}" if parts.scheme else "it has no scheme"
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
        raise MissingExtra(f"{parts.scheme}:// needs the package {package}: pip install 'easybus[{extra}]'") from error
    engine: Engine = module.create(url, clock)
    return engine
