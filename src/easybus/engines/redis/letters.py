"""Dead letters, by (queue, key): a hash and a list of its history each.

A fence is taken from one counter at every store, claim and edit; `remove` acts under the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...errors import EnvelopeError
from ...message import Message
from ..contract import DeadLetter
from .link import Link
from .scripts import Script
from .topology import to_microseconds

_STORE, _FETCH = Script("letter_store", lasting=True), Script("letter_fetch", lasting=True)
_MARK, _DELETE = Script("letter_mark", lasting=True), Script("letter_delete", lasting=True)
_FIND, _READ = Script("letter_find"), Script("letter_read")
_PART = 100
_encode = msgspec.json.encode
_decode_event = msgspec.json.Decoder(dict[str, Any]).decode


def key_of(message_id: str, body: bytes) -> str:
    """What addresses a letter in its queue: its id with its payload's digest, or the digest of the bytes alone."""
    if not message_id:
        return hashlib.sha256(body).hexdigest()
    try:
        payload = Message.from_bytes(body).payload
    except EnvelopeError:
        payload = body
    return f"{message_id}:{hashlib.sha256(payload).hexdigest()}"


class RedisLetters:
    """The dead letter storage."""

    def __init__(self, link: Callable[[], Link]) -> None:
        self._link = link

    async def store(self, letter: DeadLetter) -> str:
        key = key_of(letter.message_id, letter.body)
        fields: list[Any] = ["message_id", letter.message_id, "body", letter.body, "reason", letter.reason]
        fields += ["error_type", letter.error_type, "error", letter.error, "traceback", letter.traceback]
        fields += ["attempts", letter.attempts, "last_failed", to_microseconds(letter.last_failed)]
        fields += ["first_failed", to_microseconds(letter.first_failed)]  # after the last: it is where there is none
        what = _event(what="stored again", reason=letter.reason)
        await self._store(letter.queue, key, "", what, [_encode(event) for event in letter.history], fields)
        return key

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        letter = await self.get(queue, key)
        if letter is None:
            return None
        try:
            message_id = Message.from_bytes(body).id
        except EnvelopeError:
            message_id = letter.message_id
        new = key_of(message_id, body)
        fields = ["message_id", message_id, "body", body]
        stood = await self._store(queue, new, letter.key, _event(what="edited"), [], fields)
        return new if stood else None

    async def _store(
        self, queue: str, key: str, old: str, what: bytes, history: Sequence[bytes], fields: Sequence[Any]
    ) -> bool:
        link = self._link()
        keys = (link.names.fences, link.names.letters, link.names.queue(queue))
        return await link.run(_STORE, keys, (queue, key, old, what, len(history), *history, *fields)) == 1

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        link = self._link()
        keys = (link.names.fences, link.names.queue(queue))
        return [_read(queue, row) for row in await link.run(_FETCH, keys, (limit, to_microseconds(lease)))]

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        return await self._delete(queue, [key], fence or "none") == 1

    async def _delete(self, queue: str, keys: Sequence[str], fence: str) -> int:
        link = self._link()
        deleted: int = await link.run(_DELETE, (link.names.letters, link.names.queue(queue)), (queue, fence, *keys))
        return deleted

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        link = self._link()
        most = "+inf" if before is None else f"({to_microseconds(before)}"
        limited = () if reason is not None else ("LIMIT", 0, limit)
        rows: list[tuple[float, str, str]] = []
        for name in await self._queues() if queue is None else [queue]:
            base = link.names.queue(name)
            reply = await link.command("ZRANGEBYSCORE", f"{base}:dt", "-inf", most, *limited, "WITHSCORES")
            rows += [(float(score), name, key.decode()) for key, score in _pairs(reply)]
        found: list[DeadLetter] = []
        rows.sort()
        for start in range(0, len(rows), _PART):
            found += [
                letter
                for letter in await self._letters([(name, key) for _, name, key in rows[start : start + _PART]])
                if reason is None or reason in letter.reason or reason in letter.error_type
            ]
            if len(found) >= limit:
                break
        return found[:limit]

    async def _letters(self, wanted: Sequence[tuple[str, str]]) -> list[DeadLetter]:
        """These, in their order, without those that are gone."""
        link = self._link()
        by_queue: dict[str, list[str]] = {}
        for queue, key in wanted:
            by_queue.setdefault(queue, []).append(key)
        there: dict[tuple[str, str], DeadLetter] = {}
        for queue, keys in by_queue.items():
            for row in await link.run(_READ, (link.names.queue(queue),), keys):
                letter = _read(queue, row)
                there[queue, letter.key] = letter
        return [there[one] for one in wanted if one in there]

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        found = await self._letters([(queue, one) for one in await self._resolved(queue, [key])])
        return found[0] if found else None

    async def _resolved(self, queue: str, names: Sequence[str]) -> list[str]:
        """The letters' keys, of keys and message ids; each once, without what names none or several."""
        link = self._link()
        found = await link.run(_FIND, (link.names.queue(queue),), list(names))
        return list(dict.fromkeys(key.decode() for key in found if key))

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        link = self._link()
        marked: int = await link.run(_MARK, (link.names.queue(queue),), await self._resolved(queue, keys))
        return marked

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        return await self._delete(queue, await self._resolved(queue, keys), "")

    async def count(self) -> dict[str, int]:
        link = self._link()
        counts = {name: await link.command("ZCARD", f"{link.names.queue(name)}:dt") for name in await self._queues()}
        return {name: number for name, number in counts.items() if number}

    async def _queues(self) -> list[str]:
        link = self._link()
        return sorted(name.decode() for name in await link.command("SMEMBERS", link.names.letters))


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    """A reply's pairs; the client may have paired them already."""
    if flat and isinstance(flat[0], (list, tuple)):
        return [(one[0], one[1]) for one in flat]
    return list(zip(flat[::2], flat[1::2], strict=True))


def _event(**fields: str) -> bytes:
    """An entry of the history as JSON, without its brace and its time, which the server writes."""
    return _encode(fields)[1:]


def _read(queue: str, row: Sequence[Any]) -> DeadLetter:
    key, flat, history = row
    fields = {name.decode(): value for name, value in _pairs(flat)}
    return DeadLetter(
        queue=queue,
        key=key.decode(),
        message_id=fields["message_id"].decode(),
        body=fields["body"],
        reason=fields["reason"].decode(),
        error_type=fields["error_type"].decode(),
        error=fields["error"].decode(),
        traceback=fields["traceback"].decode(),
        attempts=int(fields["attempts"]),
        first_failed=int(fields["first_failed"]) / 1e6,
        last_failed=int(fields["last_failed"]) / 1e6,
        history=[_decode_event(event) for event in history],
        fence=fields["fence"].decode(),
        marked=fields["marked"] == b"1",
    )
