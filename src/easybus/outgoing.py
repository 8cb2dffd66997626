"""What is sent: values and their options, as messages and publications."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar

from .engines.contract import Publication
from .errors import ConfigurationError
from .message import TYPE, Message, new_id
from .topic import Queue, Topic

__all__ = ["Outgoing", "SendOptions", "message_of", "publication_of", "publications_of"]

T = TypeVar("T")


class SendOptions(TypedDict, total=False):
    """How one message is sent."""

    route_key: str
    """What bindings match against; default the empty key."""
    delay: float | None
    """Seconds until it may be seen; default the queue's."""
    at: datetime | None
    """When it may be seen; with a time zone. A time in the past: now."""
    id: str | None
    """Its id; default a new one. The same id again is the same message."""
    headers: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Outgoing(Generic[T]):
    """A value with options of its own, for `send_many`."""

    value: T
    route_key: str = ""
    delay: float | None = None
    at: datetime | None = None
    id: str | None = None
    headers: Mapping[str, str] | None = None


def message_of(contract: Topic[Any] | Queue[Any], value: Any, options: SendOptions) -> Message:
    """The message that carries a value; a `Message` is taken as it is.

    Raises:
        PayloadError: the value fits none of the contract's types.
        ConfigurationError: an id, route key or headers that no UTF-8 text can be, or that a `Message` has of its own.
    """
    if isinstance(value, Message):
        if options.get("route_key") or options.get("headers") or options.get("id") is not None:
            raise ConfigurationError(
                "a Message has its own id, route key and headers: leave out id=, route_key=, headers="
            )
        _check_texts(value.id, value.route_key, value.headers)
        return value
    payload, kind = contract.payloads.encode(value)
    if not options:  # the common case, at half the price
        return Message(id=new_id(), payload=payload, headers={TYPE: kind} if kind else {})
    headers = dict(options.get("headers") or {})
    if kind:
        headers[TYPE] = kind
    given, route_key = options.get("id"), options.get("route_key", "")
    _check_texts("" if given is None else given, route_key, headers)
    return Message(id=new_id() if given is None else given, payload=payload, route_key=route_key, headers=headers)


def _check_texts(id: str, route_key: str, headers: Mapping[str, str]) -> None:
    """Types are the editor's to check, but a number here would be confirmed, and unreadable to every handler."""
    for name, text in (("id", id), ("route_key", route_key), *headers.items(), *zip(headers, headers, strict=True)):
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{name}={text!r} is no text: write {name}={str(text)!r}")
        if not text.isascii():
            whole = text.encode("utf-8", "replace").decode()
            if whole != text:
                raise ConfigurationError(
                    f"{name}={text!r} holds half a surrogate pair, which no UTF-8 text can: write {whole!r}, "
                    "or what the half was meant to be"
                )


def delay_of(options: SendOptions, now: float) -> float | None:
    """A send's own delay in seconds, from `delay` or `at`."""
    delay, at = options.get("delay"), options.get("at")
    if delay is not None and not isinstance(delay, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"delay={delay!r}; it is a number of seconds, such as 60")
    if at is None:
        return delay
    if delay is not None:
        raise ConfigurationError("delay= and at= both say when; give one of them")
    if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"at={at!r}; it is a datetime with a time zone, such as datetime(..., tzinfo=UTC)")
    if at.tzinfo is None:
        raise ConfigurationError(f"at={at!r} has no time zone; write at=datetime(..., tzinfo=UTC)")
    return max(0.0, at.timestamp() - now)


def publications_of(
    contract: Topic[Any] | Queue[Any], values: Iterable[Any], now: float, require: bool | None, *, otherwise: bool
) -> tuple[list[Message], list[Publication]]:
    """Values as messages, and these on their way. `otherwise`: for topic sends that say nothing of `require`.

    Raises:
        PayloadError: a value fits none of the contract's types; nothing is sent.
        ConfigurationError: options that contradict each other.
    """
    messages: list[Message] = []
    publications: list[Publication] = []
    for value in values:
        one, options = _unpacked(value)
        message, publication = publication_of(contract, one, options, now, require, otherwise=otherwise)
        messages.append(message)
        publications.append(publication)
    return messages, publications


def publication_of(
    contract: Topic[Any] | Queue[Any],
    value: Any,
    options: SendOptions,
    now: float,
    require: bool | None,
    *,
    otherwise: bool,
) -> tuple[Message, Publication]:
    """One value; see `publications_of`. A misspelt option is a TypeError, never ignored."""
    if options and not options.keys() <= SendOptions.__annotations__.keys():
        Outgoing(value, **options)
    message = message_of(contract, value, options)
    delay = delay_of(options, now) if options else None
    if require and delay:
        raise ConfigurationError("require= cannot be told for a delayed send: who is bound shows when it is due")
    to_topic = not isinstance(contract, Queue)
    demanded = to_topic and not delay and (otherwise if require is None else require)
    return message, Publication(
        to_topic, contract.name, message.to_bytes(), message.route_key, delay, message.id, demanded
    )


def _unpacked(value: Any) -> tuple[Any, SendOptions]:
    if not isinstance(value, Outgoing):
        return value, SendOptions()
    out: Any = value  # pyright: ignore[reportUnknownVariableType]
    return out.value, SendOptions(route_key=out.route_key, delay=out.delay, at=out.at, id=out.id, headers=out.headers)
