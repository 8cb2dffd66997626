"""What RabbitMQ and pika say, as our errors. AMQP's reply codes are the table's first column."""

from __future__ import annotations

import re
from typing import Any

from pika import exceptions

from ...errors import DeclaredOtherwise, EngineError, NotDeclared, Refused, TooLarge, Unavailable
from ..certificates import untrusted
from ..unreached import unreached

__all__ = ["blamed", "fault"]

_ACCESS_REFUSED, _NOT_FOUND, _LOCKED, _PRECONDITION, _NOT_ALLOWED, _NOT_IMPLEMENTED = 403, 404, 405, 406, 530, 540
_LARGEST = re.compile(r"larger than .*?(\d+)")
_EXCHANGE = re.compile(r"exchange '(.*)' in vhost")
_KEY = re.compile(r"access to topic '(.*)' in exchange")
_NO_RIGHTS = re.compile(r"in vhost '(.*)' refused for user '(.*)'", re.DOTALL)
_TRANSIENT = ("down or inaccessible", "timeout", "noproc", "nodedown", "ack timed out")
"""Refusals that pass: a queue's leader is being elected, or its node restarts."""


def fault(error: BaseException | None, what: str) -> EngineError:
    """The error to raise from `error`, met at `what`."""
    for inner in _inner(error):
        if isinstance(inner, exceptions.ProbableAuthenticationError | exceptions.AuthenticationError):
            says = "RabbitMQ refuses this user or password: mend the URL (special characters as %XX)"
            return _chain(Refused(f"{what}: {says}"), inner)
        if isinstance(inner, exceptions.ProbableAccessDeniedError):
            says = (
                "RabbitMQ refuses this user the virtual host of the URL: mend the URL, or allow it: rabbitmqctl "
                "set_permissions -p VHOST USER '.*' '.*' '.*'"
            )
            return _chain(Refused(f"{what}: {says}"), inner)
        if (why := untrusted(inner, "cafile")) is not None:
            return _chain(Refused(f"{what}: {why}"), inner)
        code: int = getattr(inner, "reply_code", 0)
        if code:
            return _chain(_replied(code, str(getattr(inner, "reply_text", "")), what), inner)
    advice = next((advice for inner in _inner(error) if (advice := unreached(inner))), "")
    return _chain(Unavailable(f"{what}: RabbitMQ cannot be reached: {_text(error)}{advice}"), error)


def blamed(error: Exception, exchange: str, key: str, body: bytes) -> bool:
    """Whether a message that went so is what the server refused, when it closed the channel with `error`: the others
    on it are as they were."""
    said = str(error)
    if isinstance(error, TooLarge):
        found = _LARGEST.search(said)
        return found is None or len(body) > int(found[1])
    names, keys = _EXCHANGE.search(said), _KEY.search(said)
    return (names is None or names[1] == (exchange or "amq.default")) and (keys is None or keys[1] == key)


def _replied(code: int, text: str, what: str) -> EngineError:
    said = f"{what}: RabbitMQ says {code} {text}"
    if any(word in text for word in _TRANSIENT):
        return Unavailable(said)
    if code == _NOT_FOUND:
        return NotDeclared(said)
    if code == _PRECONDITION:
        return TooLarge(said) if _LARGEST.search(text) else DeclaredOtherwise(said)
    if code in (_ACCESS_REFUSED, _LOCKED, _NOT_ALLOWED, _NOT_IMPLEMENTED):
        if (lacks := _NO_RIGHTS.search(text)) is not None:
            said += f": allow it: rabbitmqctl set_permissions -p '{lacks[1]}' '{lacks[2]}' '.*' '.*' '.*'"
        return Refused(said)
    return Unavailable(said)


def _inner(error: Any) -> list[Any]:
    """The errors that pika's connection workflow wraps, the innermost first."""
    found: list[Any] = []
    seen: list[Any] = [error]
    while seen:
        one = seen.pop()
        if one is None or one in found:
            continue
        found.insert(0, one)
        seen += [one.__cause__, getattr(one, "exception", None), *(getattr(one, "exceptions", None) or ())]
        seen += [part for part in getattr(one, "args", ()) if isinstance(part, BaseException)]
    return found


def _text(error: BaseException | None) -> str:
    for inner in _inner(error):
        if str(inner):
            return f"{type(inner).__name__}: {inner}"
    return type(error).__name__ if error is not None else "the connection is lost"


def _chain(error: EngineError, cause: BaseException | None) -> EngineError:
    error.__cause__ = cause
    return error
