"""Dead letters as the admin's pages show them: nothing raw, nothing that looks like a secret."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from django.core.exceptions import ImproperlyConfigured

from ..bus import Bus
from ..engines.contract import DeadLetter, DeadLetterStorage
from ..errors import EnvelopeError
from ..message import Message
from ..shown import hidden, hide, visible, visible_bytes
from .project import get_bus

__all__ = ["Letter", "Letters"]

T = TypeVar("T")

_SECRET = re.compile(
    r"pass(?:word|wd|phrase)|pwd|secret|token|authori[sz]ation|cookie|credential|signature|(?:api|private|access).?key",
    re.IGNORECASE,
)
_STARS = "***"


class Letter:
    """One letter, its texts safe to be shown. What is left to a template's escaping is markup alone."""

    def __init__(self, letter: DeadLetter) -> None:
        self._letter = letter
        self.queue = _line(letter.queue)
        self.id = _line(letter.message_id or letter.key)
        self.reason = _line(letter.reason)
        self.error = _line(f"{letter.error_type}: {letter.error}".strip(": "))
        self.attempts = letter.attempts
        self.first_failed = _when(letter.first_failed)
        self.last_failed = _when(letter.last_failed)
        self.marked = letter.marked

    @property
    def address(self) -> str:
        """What names it in a page's address."""
        return _packed(self._letter.queue, self._letter.key)

    @property
    def traceback(self) -> str:
        return hidden(visible_bytes(self._letter.traceback.rstrip().encode("utf-8", "backslashreplace")))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values, headers included."""
        message = self._message
        facts = [("Id", self.id), ("Key", _line(self._letter.key)), ("Queue", self.queue)]
        if message is not None:
            facts.append(("Route key", _line(message.route_key)))
            for name, value in message.headers.items():
                facts.append((f"Header {_line(name)}", _STARS if _SECRET.search(name) else _line(value)))
        return [(name, value) for name, value in facts if value]

    @property
    def history(self) -> list[tuple[datetime | None, str]]:
        """What happened to it."""
        return [
            (
                _when(float(event.get("at", 0))),
                _line(
                    " ".join([str(event.get("what", "")), *(f"{k}={v}" for k, v in event.items() if k not in _SAID)])
                ),
            )
            for event in self._letter.history
        ]

    @property
    def payload(self) -> str:
        """Laid out where it is JSON; the bytes as they came where they are no message."""
        message = self._message
        data = self._letter.body if message is None else message.payload
        try:
            text = json.dumps(_without_secrets(json.loads(data)), ensure_ascii=False, indent=2)
        except RecursionError:
            return "(nested too deeply to be shown)"
        except ValueError:
            return hidden(visible_bytes(data))  # no JSON: as it is
        return hidden("\n".join(visible(line) for line in text.split("\n")))

    @property
    def _message(self) -> Message | None:
        try:
            return Message.from_bytes(self._letter.body)
        except EnvelopeError:
            return None


_SAID = ("at", "what")


class Letters:
    """The dead letters of the project's bus, wherever its storage keeps them. Every call may raise `EngineError`."""

    def __init__(self) -> None:
        self._bus: Bus = get_bus()
        for url in (self._bus.url, self._bus.storage_url, *self._bus.databases):
            hide(url or "")

    def counts(self) -> dict[str, int]:
        """How many there are, by queue."""
        return dict(sorted(self._ask(lambda storage: storage.count()).items()))

    def find(self, queue: str | None, reason: str | None, limit: int) -> list[Letter]:
        """Letters, oldest failure first."""
        found = self._ask(lambda storage: storage.find(queue or None, reason=reason or None, limit=limit))
        return [Letter(one) for one in found]

    def get(self, address: str) -> Letter | None:
        """One letter; None: it is gone, or never was."""
        try:
            queue, key = _unpacked(address)
        except ValueError:
            return None
        found = self._ask(lambda storage: storage.get(queue, key))
        return None if found is None else Letter(found)

    def retry(self, addresses: list[str]) -> int:
        """Mark letters for retry; returns how many were there."""
        return self._each(addresses, lambda storage: storage.mark_for_retry)

    def delete(self, addresses: list[str]) -> int:
        """Delete letters for good; returns how many were there."""
        return self._each(addresses, lambda storage: storage.delete)

    def _each(self, addresses: list[str], what: Callable[[DeadLetterStorage], Any]) -> int:
        keys: dict[str, list[str]] = {}
        for address in addresses:
            queue, key = _unpacked(address)
            keys.setdefault(queue, []).append(key)
        return sum(
            self._ask(lambda storage, of=of, names=names: what(storage)(of, names)) for of, names in keys.items()
        )

    def _ask(self, question: Callable[[DeadLetterStorage], Any]) -> Any:
        self._bus.blocking.open()
        storage = self._bus.dead_letters
        if storage is None or self._bus.dead_letters_go == "queue":
            raise ImproperlyConfigured(
                "this bus keeps its dead letters in queues, <queue>.dead, and not in a storage that could be looked "
                "through: give it one, Bus(url, storage='postgresql://…')"
            )
        return self._bus.blocking.call(question(storage))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {
            name: _STARS if _SECRET.search(name) and inner else _without_secrets(inner) for name, inner in named.items()
        }
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in cast("list[Any]", value)]
    return value


def _line(text: str) -> str:
    return hidden(visible(text))


def _when(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _packed(queue: str, key: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([queue, key]).encode()).decode().rstrip("=")


def _unpacked(address: str) -> tuple[str, str]:
    """Raises `ValueError`: it names no letter."""
    try:
        queue, key = json.loads(base64.urlsafe_b64decode(address + "=" * (-len(address) % 4)))
    except (binascii.Error, UnicodeDecodeError, TypeError) as error:
        raise ValueError(address) from error
    if not isinstance(queue, str) or not isinstance(key, str):
        raise ValueError(address)
    return queue, key
