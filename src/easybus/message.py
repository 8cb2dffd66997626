"""What users send and handlers get, its bytes, and every header name.

The wire is one JSON object, shared with the Go library that easybus answers to:
`b` id, `p` payload in standard base64, `r` times retried, `k` route key, and ours `h`, headers.
Empty fields are left out; unknown keys are never an error.
"""

from __future__ import annotations

import os
import time
from typing import Any, TypeVar

import msgspec

from .errors import EnvelopeError, PayloadError

__all__ = ["Message", "new_id"]

T = TypeVar("T")

# Header names. Users' own names are free; these are ours.
TYPE = "type"
"""The payload's class name, or its entry in `names`: tells the types of one topic apart."""
MENDED_FROM = "mended-from"
"""The id of the dead letter that this message was mended from."""
REPLAY = "easybus-replay"
"""The fence of the dead letter that this copy was replayed from: its starts are counted anew."""
FIRST_FAILED = "easybus-first-failed"
"""Unix seconds of a message's first failure, carried by its retries."""
DEFERRED = "easybus-to"
"""The topic that a message goes to when it is due: delayed topic sends that the core bridges."""
DELAY = "easybus-delay"
"""A half's own delay in seconds, counted from its publication; taken off when it is published."""


class Message(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """One message: an id, payload bytes, and what travels with them."""

    id: str = msgspec.field(default="", name="b")
    payload: bytes = msgspec.field(default=b"", name="p")
    retried: int = msgspec.field(default=0, name="r")
    route_key: str = msgspec.field(default="", name="k")
    headers: dict[str, str] = msgspec.field(default={}, name="h")

    @classmethod
    def new(
        cls,
        value: object,
        *,
        id: str | None = None,
        route_key: str = "",
        headers: dict[str, str] | None = None,
    ) -> Message:
        """A message of `value` (bytes as they are, anything else as JSON), with a new id if none is given.

        Raises:
            PayloadError: `value` cannot be written as JSON.
        """
        return cls(
            id=new_id() if id is None else id,
            payload=encode_value(value),
            route_key=route_key,
            headers=dict(headers or {}),
        )

    def decode(self, type: type[T]) -> T:
        """The payload as `type`.

        Raises:
            PayloadError: the payload does not fit `type`.
        """
        from .payloads import codec_of  # the codecs know pydantic and upgrades; this module knows the wire

        return codec_of(type).decode(self.payload)

    def to_bytes(self) -> bytes:
        """The envelope, as the Go library writes it (its JSON writer escapes `<`, `>`, `&`, U+2028, U+2029)."""
        data = _encode(self)
        # Numbers, not bytes: asked for bytes, `in` first tries them as a number, which costs more than all the rest.
        if 0x3C in data or 0x3E in data or 0x26 in data or 0xE2 in data:
            for raw, escaped in _GO_ESCAPES:
                data = data.replace(raw, escaped)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """The message that an envelope holds.

        Raises:
            EnvelopeError: these bytes are no message; the text says why.
        """
        try:
            message = _decode(data)
        except Exception as error:  # msgspec, Unicode and recursion errors alike: no message
            message = _without_nulls(data, error)
        if not 0 <= message.retried < 1 << 63:
            raise EnvelopeError(f"no message: r, the times retried, is {message.retried}; it is 0 or more, in 64 bits")
        return message


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode
_GO_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)


def _without_nulls(data: bytes, error: Exception) -> Message:
    """Read once more with `null` as "not there", as Go does; else the envelope error."""
    try:
        fields = {key: value for key, value in _decode_any(data).items() if value is not None}
        return msgspec.convert(fields, Message)
    except Exception:
        raise EnvelopeError(f"no message: {type(error).__name__}: {error}") from error


def encode_value(value: object) -> bytes:
    """Payload bytes of a value: bytes as they are, anything else as JSON."""
    if isinstance(value, bytes):
        return value
    try:
        return _encode(value)
    except Exception as error:
        raise PayloadError(f"{type(value).__name__} cannot be written as JSON: {error}") from error


_random_parts: list[str] = []  # only popped from and appended to: each is one step, whatever thread takes it
_stamp = (0, "")
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

# A forked child must not take the same ones as its parent.
os.register_at_fork(after_in_child=_random_parts.clear)


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ordered by time, unique by 74 random bits alone, in threads and forks too.

    The random bits are bought from the system for 256 ids at a time: one system call an id costs more than the rest.
    """
    global _stamp
    now = time.time_ns() // 1_000_000
    stamp = _stamp
    if stamp[0] != now:
        digits = f"{now:012x}"
        _stamp = stamp = (now, f"{digits[:8]}-{digits[8:]}-7")
    try:
        return stamp[1] + _random_parts.pop()
    except IndexError:
        digits = os.urandom(10 * 256).hex()
        parts = [
            f"{digits[at : at + 3]}-{_VARIANTS[digits[at + 3]]}{digits[at + 4 : at + 7]}-{digits[at + 7 : at + 19]}"
            for at in range(0, 20 * 256, 20)
        ]
        last = parts.pop()
        _random_parts.extend(parts)
        return stamp[1] + last
