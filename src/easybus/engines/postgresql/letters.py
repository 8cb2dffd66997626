"""Dead letters, by (queue, key).

Every store, claim and edit takes a fence from the sequence; `remove` acts under the last one. The row's own lock keeps
its history whole: who stores, marks or edits writes the row first, and reads the history of what it then holds.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import EnvelopeError
from ...message import Message
from ..contract import DeadLetter
from .connections import Connection
from .keys import FOREVER
from .names import escape, indexed, unescape
from .session import Session

_HISTORY = 100  # entries kept of one letter

_COLUMNS = (
    "queue, key, message_id, body, reason, error_type, error, traceback, attempts, first_failed, last_failed, "
    "history, fence, marked"
)
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_FENCE = "nextval({fence_text})"
_STORE = (  # a row that stands keeps its first failure and its history, loses its mark and its claim
    "INSERT INTO {dead} AS dead (queue, place, key, message_id, body, reason, error_type, error, traceback, attempts, "
    "first_failed, last_failed, history, fence) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
    f"coalesce(nullif($11::float8, 0), nullif($12::float8, 0), {_NOW}), coalesce(nullif($12::float8, 0), {_NOW}), $13, "
    f"{_FENCE} ON CONFLICT (queue, place) DO UPDATE SET body = excluded.body, reason = excluded.reason, "
    "error_type = excluded.error_type, error = excluded.error, traceback = excluded.traceback, "
    "attempts = excluded.attempts, last_failed = excluded.last_failed, fence = excluded.fence, marked = false, "
    f"until_at = '-infinity' RETURNING id, xmax <> 0, history, {_NOW}"
)
_REMEMBER = "UPDATE {dead} SET history = $2 WHERE id = $1"
_MARKED = (  # marked letters, each to one replayer, with a new fence
    "WITH due AS MATERIALIZED (SELECT id FROM {dead} WHERE marked AND queue = $1 AND until_at <= now() "
    "ORDER BY until_at, id LIMIT $2 FOR UPDATE SKIP LOCKED) "
    f"UPDATE {{dead}} AS dead SET until_at = now() + make_interval(secs => $3), fence = {_FENCE} FROM due "
    f"WHERE dead.id = due.id RETURNING dead.id, {_NOW}, {_COLUMNS}"
)
_REMOVE = "DELETE FROM {dead} WHERE queue = $1 AND place = $2 AND fence = $3"
_GET = f"SELECT id, {_NOW}, {_COLUMNS} FROM {{dead}} WHERE queue = $1 AND place = $2"
_GET_BY_ID = f"SELECT id, {_NOW}, {_COLUMNS} FROM {{dead}} WHERE queue = $1 AND message_id = $2 LIMIT 2"
_LOCKED = " FOR UPDATE"
_MARK = "UPDATE {dead} SET marked = true, until_at = '-infinity', history = $2 WHERE id = $1"
_DELETE = "DELETE FROM {dead} WHERE id = $1"
_FIND = (
    f"SELECT id, {_NOW}, {_COLUMNS} FROM {{dead}} WHERE ($1::text IS NULL OR queue = $1) "
    "AND ($2::text IS NULL OR position($2 IN reason) > 0 OR position($2 IN error_type) > 0) "
    "AND ($3::float8 IS NULL OR last_failed < $3) ORDER BY last_failed, id LIMIT $4"
)
_COUNT = "SELECT queue, count(*) FROM {dead} GROUP BY queue ORDER BY queue"

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


class PostgresqlLetters:
    """The dead letter storage."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = session.names

    async def store(self, letter: DeadLetter) -> str:
        async def work(connection: Connection) -> str:
            async with connection.transaction():
                return await self._store(connection, letter)

        return await self._session.connections.run(work)

    async def _store(self, connection: Connection, letter: DeadLetter) -> str:
        key = key_of(letter.message_id, letter.body)
        texts = (letter.reason, letter.error_type, letter.error, letter.traceback)
        row, stood, history, now = await connection.fetchrow(
            self._names(_STORE),
            escape(letter.queue),
            indexed(key),
            escape(key),
            escape(letter.message_id),
            letter.body,
            *(escape(text) for text in texts),
            letter.attempts,
            letter.first_failed,
            letter.last_failed,
            _encode_history(letter.history),
        )
        if stood:
            entries = _entry(_decode_history(history), now, "stored again", letter.reason)
            await connection.execute(self._names(_REMEMBER), row, _encode_history(entries))
        return key

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        async def work(connection: Connection) -> list[DeadLetter]:
            given = (escape(queue), limit, min(lease, FOREVER))
            if not (found := await connection.fetch(self._names(_MARKED), *given)):
                return []
            letters: list[DeadLetter] = []
            for row in sorted(found, key=lambda row: row[0]):
                letter = _read(row)
                letter.history = _entry(letter.history, row[1], "claimed for replay")
                await connection.execute(self._names(_REMEMBER), row[0], _encode_history(letter.history))
                letters.append(letter)
            return letters

        return await self._session.connections.run(work)

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        number = int(fence) if fence.isascii() and fence.isdecimal() and len(fence) < 19 else -1
        given = (escape(queue), indexed(key), number)
        done = await self._session.connections.run(lambda connection: connection.execute(self._names(_REMOVE), *given))
        return done == "DELETE 1"

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        given = (None if queue is None else escape(queue), None if reason is None else escape(reason), before, limit)
        rows = await self._session.connections.run(lambda connection: connection.fetch(self._names(_FIND), *given))
        return [_read(row) for row in rows]

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        row = await self._session.connections.run(lambda connection: self._get(connection, queue, key))
        return None if row is None else _read(row)

    async def _get(self, connection: Connection, queue: str, key: str, lock: str = "") -> Any:
        row = await connection.fetchrow(self._names(_GET + lock), escape(queue), indexed(key))
        if row is not None or not key:
            return row
        found = await connection.fetch(self._names(_GET_BY_ID + lock), escape(queue), escape(key))
        return found[0] if len(found) == 1 else None

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        async def work(connection: Connection) -> str | None:
            async with connection.transaction():
                row = await self._get(connection, queue, key, _LOCKED)
                if row is None:
                    return None
                letter = _read(row)
                with contextlib.suppress(EnvelopeError):
                    letter.message_id = Message.from_bytes(body).id
                await connection.execute(self._names(_DELETE), row[0])
                letter.body, letter.history = body, _entry(letter.history, row[1], "edited")
                return await self._store(connection, letter)

        return await self._session.connections.run(work)

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        async def mark(connection: Connection, row: Any) -> None:
            entries = _entry(_read(row).history, row[1], "marked for retry")
            await connection.execute(self._names(_MARK), row[0], _encode_history(entries))

        return await self._each(queue, keys, mark)

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        async def delete(connection: Connection, row: Any) -> None:
            await connection.execute(self._names(_DELETE), row[0])

        return await self._each(queue, keys, delete)

    async def _each(self, queue: str, keys: Sequence[str], act: Any) -> int:
        """Do `act` to every letter of these that is there, all in one transaction; returns how many there were."""

        async def work(connection: Connection) -> int:
            seen: set[int] = set()
            async with connection.transaction():
                for key in sorted(set(keys)):
                    row = await self._get(connection, queue, key, _LOCKED)
                    if row is not None and row[0] not in seen:
                        seen.add(row[0])
                        await act(connection, row)
            return len(seen)

        return await self._session.connections.run(work)

    async def count(self) -> dict[str, int]:
        rows = await self._session.connections.run(lambda connection: connection.fetch(self._names(_COUNT)))
        return {unescape(queue): count for queue, count in rows}


def _entry(history: list[dict[str, Any]], at: float, what: str, why: str = "") -> list[dict[str, Any]]:
    entry: dict[str, Any] = {"at": at, "what": what}
    if why:
        entry["reason"] = why
    return [*history, entry][-_HISTORY:]


def _encode_history(history: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(history).decode()


def _read(row: Any) -> DeadLetter:
    return DeadLetter(
        queue=unescape(row["queue"]),
        key=unescape(row["key"]),
        message_id=unescape(row["message_id"]),
        body=row["body"],
        reason=unescape(row["reason"]),
        error_type=unescape(row["error_type"]),
        error=unescape(row["error"]),
        traceback=unescape(row["traceback"]),
        attempts=row["attempts"],
        first_failed=row["first_failed"],
        last_failed=row["last_failed"],
        history=_decode_history(row["history"]),
        fence=str(row["fence"]),
        marked=row["marked"],
    )
