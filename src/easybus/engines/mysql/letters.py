"""Dead letters, by (queue, key).

Every store, claim and edit takes a number from the table `fence`, whose counter never restarts; a letter's fence is
that number with its row's, and `remove` acts under the last one. Who stores, claims, marks or edits locks the row
first, and writes the history of what it then holds.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ...errors import EnvelopeError
from ...message import Message
from ..contract import DeadLetter
from .link import BEGIN, COMMIT, Link
from .names import held, ident, micros, place, read
from .session import Session

_HISTORY = 100  # entries kept of one letter

_COLUMNS = (
    "id, queue, `key`, message_id, body, reason, error_type, error, traceback, attempts, first_failed, last_failed, "
    "history, fence, marked"
)
_NEXT_FENCE = "INSERT INTO {fence} VALUES ()"
_USED_FENCE = "DELETE FROM {fence} WHERE id = %s"  # the counter goes on
_CLOCK = "SELECT {now}"
_GET = f"SELECT {_COLUMNS} FROM {{dead}} WHERE place = %s"
_GET_BY_ID = f"SELECT {_COLUMNS} FROM {{dead}} WHERE named = %s LIMIT 2"
_LOCKED = " FOR UPDATE"
_ADD = (
    "INSERT INTO {dead} (place, named, scope, queue, `key`, message_id, body, reason, error_type, error, traceback, "
    "attempts, first_failed, last_failed, history, fence) VALUES "
    "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_CHANGE = (  # a letter that stands keeps its first failure, loses its mark and its claim
    "UPDATE {dead} SET body = %s, reason = %s, error_type = %s, error = %s, traceback = %s, attempts = %s, "
    "last_failed = %s, history = %s, fence = %s, marked = 0, until_at = 0 WHERE id = %s"
)
_MARKED = (  # marked letters, each to one replayer
    f"SELECT {_COLUMNS} FROM {{dead}} FORCE INDEX (marked) WHERE scope = %s AND marked = 1 AND until_at <= {{now}} "
    "ORDER BY until_at, id LIMIT %s FOR UPDATE SKIP LOCKED"
)
_CLAIM = "UPDATE {dead} SET until_at = {now} + %s, fence = %s, history = %s WHERE id = %s"
_REMOVE = "DELETE FROM {dead} WHERE place = %s AND fence = %s AND id = %s"
_MARK = "UPDATE {dead} SET marked = 1, until_at = 0, history = %s WHERE id = %s"
_DELETE = "DELETE FROM {dead} WHERE id = %s"
_FIND = (
    f"SELECT {_COLUMNS} FROM {{dead}} WHERE (%s IS NULL OR scope = %s) "
    "AND (%s IS NULL OR LOCATE(%s, reason) > 0 OR LOCATE(%s, error_type) > 0) "
    "AND (%s IS NULL OR last_failed < %s) ORDER BY last_failed, id LIMIT %s"
)
_COUNT = "SELECT queue, COUNT(*) FROM {dead} GROUP BY queue ORDER BY queue"

_decode_history = msgspec.json.Decoder(list[dict[str, Any]]).decode


def key_of(message_id: str, body: bytes) -> str:
    """What addresses a letter in its queue: its id with its payload's digest, or the digest of the bytes alone."""
    if not message_id:
        return hashlib.sha256(body).hexdigest()
    try:
        payload = Message.from_bytes(body).payload
    except EnvelopeError:
        payload = body
    return f"{message_id}:{hashlib.sha256(payload).hexdigest()}"


class _Row(NamedTuple):
    id: int
    queue: bytes
    key: bytes
    message_id: bytes
    body: bytes
    reason: bytes
    error_type: bytes
    error: bytes
    traceback: bytes
    attempts: int
    first_failed: float
    last_failed: float
    history: bytes
    fence: int
    marked: int


class MysqlLetters:
    """The dead letter storage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def store(self, letter: DeadLetter) -> str:
        async def work(link: Link) -> str:
            await link.run(BEGIN)
            key = await _store(link, letter)
            await link.run(COMMIT)
            return key

        return await self._session.connections.run(work)

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        async def work(link: Link) -> list[DeadLetter]:
            _, marked = await link.run(BEGIN, (_MARKED, place(queue), limit))
            if not marked.rows:
                await link.run(COMMIT)
                return []
            fence, now = await _fence(link)
            letters: list[DeadLetter] = []
            for row in marked.rows:
                letter = _read(row)
                letter.history = _entry(letter.history, now, "claimed for replay")
                letter.fence = f"{fence}-{row[0]}"
                letters.append(letter)
            letters_rows = zip(marked.rows, letters, strict=True)
            steps = [(_CLAIM, micros(lease), fence, _encode(letter.history), row[0]) for row, letter in letters_rows]
            await link.run(*steps, COMMIT)
            return letters

        return await self._session.connections.run(work)

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        number, _, row = fence.partition("-")
        given = (place(queue, key), ident(number), ident(row))
        return (await self._session.connections.run(lambda link: link.one(_REMOVE, *given))).changed == 1

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        of, why = None if queue is None else place(queue), None if reason is None else held(reason)
        given = (of, of, why, why, why, before, before, limit)
        found = await self._session.connections.run(lambda link: link.one(_FIND, *given))
        return [_read(row) for row in found.rows]

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        row = await self._session.connections.run(lambda link: _get(link, queue, key))
        return None if row is None else _read(row)

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        async def work(link: Link) -> str | None:
            await link.run(BEGIN)
            row = await _get(link, queue, key, _LOCKED)
            if row is None:
                await link.run(COMMIT)
                return None
            letter = _read(row)
            with contextlib.suppress(EnvelopeError):
                letter.message_id = Message.from_bytes(body).id
            letter.body = body
            letter.history = _entry(letter.history, (await _now(link)), "edited")
            await link.one(_DELETE, row.id)
            new = await _store(link, letter)
            await link.run(COMMIT)
            return new

        return await self._session.connections.run(work)

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        async def mark(link: Link, row: _Row) -> None:
            entries = _entry(_read(row).history, await _now(link), "marked for retry")
            await link.one(_MARK, _encode(entries), row.id)

        return await self._each(queue, keys, mark)

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        async def delete(link: Link, row: _Row) -> None:
            await link.one(_DELETE, row.id)

        return await self._each(queue, keys, delete)

    async def _each(self, queue: str, keys: Sequence[str], act: Callable[[Link, _Row], Awaitable[None]]) -> int:
        """Do `act` to every letter of these that is there, all in one transaction; returns how many there were."""

        async def work(link: Link) -> int:
            seen: set[int] = set()
            await link.run(BEGIN)
            for key in sorted(set(keys)):
                row = await _get(link, queue, key, _LOCKED)
                if row is not None and row.id not in seen:
                    seen.add(row.id)
                    await act(link, row)
            await link.run(COMMIT)
            return len(seen)

        return await self._session.connections.run(work)

    async def count(self) -> dict[str, int]:
        found = await self._session.connections.run(lambda link: link.one(_COUNT))
        return {read(queue): count for queue, count in found.rows}


async def _store(link: Link, letter: DeadLetter) -> str:
    """Add a letter, or change what stands under its key, in the transaction that is open; returns the key."""
    key = key_of(letter.message_id, letter.body)
    fence, now = await _fence(link)
    why = tuple(held(text) for text in (letter.reason, letter.error_type, letter.error, letter.traceback))
    last_failed = letter.last_failed or now
    stands = (await link.one(_GET + _LOCKED, place(letter.queue, key))).rows
    if stands:
        row = _Row(*stands[0])
        history = _encode(_entry(_decode_history(row.history), now, "stored again", letter.reason))
        await link.one(_CHANGE, letter.body, *why, letter.attempts, last_failed, history, fence, row.id)
        return key
    await link.one(
        _ADD,
        place(letter.queue, key),
        place(letter.queue, letter.message_id),
        place(letter.queue),
        held(letter.queue),
        held(key),
        held(letter.message_id),
        letter.body,
        *why,
        letter.attempts,
        letter.first_failed or last_failed,
        last_failed,
        _encode(letter.history),
        fence,
    )
    return key


async def _fence(link: Link) -> tuple[int, float]:
    """A number that nobody had before, and the time."""
    number, now = await link.run((_NEXT_FENCE,), (_CLOCK,))
    await link.one(_USED_FENCE, number.id)
    return number.id, now.rows[0][0] / 1e6


async def _now(link: Link) -> float:
    return await link.value(_CLOCK) / 1e6


async def _get(link: Link, queue: str, key: str, lock: str = "") -> _Row | None:
    """A letter by its key, or by its message id where that names just one."""
    rows = (await link.one(_GET + lock, place(queue, key))).rows
    if not rows and key:
        rows = (await link.one(_GET_BY_ID + lock, place(queue, key))).rows
    return _Row(*rows[0]) if len(rows) == 1 else None


def _entry(history: list[dict[str, Any]], at: float, what: str, why: str = "") -> list[dict[str, Any]]:
    entry: dict[str, Any] = {"at": at, "what": what}
    if why:
        entry["reason"] = why
    return [*history, entry][-_HISTORY:]


def _encode(history: list[dict[str, Any]]) -> bytes:
    return msgspec.json.encode(history)


def _read(found: Sequence[Any]) -> DeadLetter:
    row = _Row(*found)
    return DeadLetter(
        queue=read(row.queue),
        key=read(row.key),
        message_id=read(row.message_id),
        body=row.body,
        reason=read(row.reason),
        error_type=read(row.error_type),
        error=read(row.error),
        traceback=read(row.traceback),
        attempts=row.attempts,
        first_failed=row.first_failed,
        last_failed=row.last_failed,
        history=_decode_history(row.history),
        fence=f"{row.fence}-{row.id}",
        marked=bool(row.marked),
    )
