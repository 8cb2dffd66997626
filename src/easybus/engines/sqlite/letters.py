"""Dead letters, by (queue, key).

A fence is taken from one sequence in the database at every store, claim and edit; `remove` acts under the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...clock import Clock
from ...errors import EnvelopeError
from ...message import Message
from ..contract import DeadLetter
from .connect import Connection, Row
from .stamps import from_microseconds, stamp_at, to_microseconds
from .writer import WRITE, Writer

_HISTORY = 100  # entries kept of one letter

_COLUMNS = (
    "queue, key, message_id, body, reason, error_type, error, traceback, attempts, first_failed, last_failed, "
    "history, fence, marked"
)
_NEXT_FENCE = "UPDATE \"easybus_meta\" SET value = value + 1 WHERE name = 'fence' RETURNING value"
_STORE = (  # a row that stands keeps its first failure, loses its mark and its claim
    f'INSERT INTO "easybus_dead" ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0) '  # noqa: S608
    "ON CONFLICT (queue, key) DO UPDATE SET body = excluded.body, reason = excluded.reason, "
    "error_type = excluded.error_type, error = excluded.error, traceback = excluded.traceback, "
    "attempts = excluded.attempts, last_failed = excluded.last_failed, history = excluded.history, "
    "fence = excluded.fence, marked = 0, until_at = 0"
)
_GET = f'SELECT {_COLUMNS} FROM "easybus_dead" WHERE queue = ? AND key = ?'  # noqa: S608
_GET_BY_ID = f'SELECT {_COLUMNS} FROM "easybus_dead" WHERE queue = ? AND message_id = ? LIMIT 2'  # noqa: S608
_MARKED = (
    f'SELECT {_COLUMNS} FROM "easybus_dead" WHERE marked = 1 AND queue = ? AND until_at <= ? '  # noqa: S608
    "ORDER BY until_at, id LIMIT ?"
)
_ANY_MARKED = 'SELECT 1 FROM "easybus_dead" WHERE marked = 1 AND queue = ? AND until_at <= ? LIMIT 1'
_CLAIM = 'UPDATE "easybus_dead" SET until_at = ?, fence = ?, history = ? WHERE queue = ? AND key = ?'
_REMOVE = 'DELETE FROM "easybus_dead" WHERE queue = ? AND key = ? AND fence = ?'
_MARK = 'UPDATE "easybus_dead" SET marked = 1, until_at = 0, history = ? WHERE queue = ? AND key = ?'
_DELETE = 'DELETE FROM "easybus_dead" WHERE queue = ? AND key = ?'
_FIND = (
    f'SELECT {_COLUMNS} FROM "easybus_dead" WHERE (? IS NULL OR queue = ?) '  # noqa: S608
    "AND (? IS NULL OR instr(reason, ?) OR instr(error_type, ?)) AND (? IS NULL OR last_failed < ?) "
    "ORDER BY last_failed, id LIMIT ?"
)
_COUNT = 'SELECT queue, count(*) FROM "easybus_dead" GROUP BY queue ORDER BY queue'

_encode_history = msgspec.json.encode
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


class SqliteLetters:
    """The dead letter storage."""

    def __init__(self, clock: Clock, writer: Callable[[], Writer]) -> None:
        self._clock = clock
        self._writer = writer

    async def store(self, letter: DeadLetter) -> str:
        return await self._writer().call(lambda connection: self._store(connection, letter), durable=True)

    def _store(self, connection: Connection, letter: DeadLetter) -> str:
        now = self._clock.time()
        key = key_of(letter.message_id, letter.body)
        stands = connection.rows(_GET, (letter.queue, key))
        history = list(letter.history)
        if stands:
            history = _entry(_read(stands[0]).history, now, "stored again", letter.reason)
        last = letter.last_failed or now
        row = (
            letter.queue,
            key,
            letter.message_id,
            letter.body,
            letter.reason,
            letter.error_type,
            letter.error,
            letter.traceback,
            letter.attempts,
            to_microseconds(letter.first_failed or last),
            to_microseconds(last),
            _encode_history(history).decode(),
            _fence(connection),
        )
        connection.run(_STORE, row)
        return key

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        def look(connection: Connection) -> Any:
            return WRITE if connection.rows(_ANY_MARKED, (queue, self._now())) else []

        def claim(connection: Connection) -> list[DeadLetter]:
            until = self._now() + to_microseconds(lease)
            letters = [_read(row) for row in connection.rows(_MARKED, (queue, self._now(), limit))]
            for letter in letters:
                letter.fence = str(_fence(connection))
                letter.history = _entry(letter.history, self._clock.time(), "claimed for replay")
                history = _encode_history(letter.history).decode()
                connection.run(_CLAIM, (until, int(letter.fence), history, queue, letter.key))
            return letters

        return await self._writer().call(claim, durable=True, peek=look)

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        number = int(fence) if fence.isascii() and fence.isdecimal() and len(fence) < 19 else -1
        return await self._writer().call(
            lambda connection: connection.run(_REMOVE, (queue, key, number)) == 1, durable=True
        )

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        stamp = None if before is None else to_microseconds(before)
        given = (queue, queue, reason, reason, reason, stamp, stamp, limit)
        return await self._writer().read(lambda connection: [_read(row) for row in connection.rows(_FIND, given)])

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        return await self._writer().read(lambda connection: _get(connection, queue, key))

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        def work(connection: Connection) -> str | None:
            letter = _get(connection, queue, key)
            if letter is None:
                return None
            try:
                message_id = Message.from_bytes(body).id
            except EnvelopeError:
                message_id = letter.message_id
            connection.run(_DELETE, (queue, letter.key))
            history = _entry(letter.history, self._clock.time(), "edited")
            return self._store(
                connection, msgspec.structs.replace(letter, message_id=message_id, body=body, history=history)
            )

        return await self._writer().call(work, durable=True)

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            letters = [letter for key in dict.fromkeys(keys) if (letter := _get(connection, queue, key)) is not None]
            for letter in letters:
                history = _entry(letter.history, self._clock.time(), "marked for retry")
                connection.run(_MARK, (_encode_history(history).decode(), queue, letter.key))
            return len(letters)

        return await self._writer().call(work, durable=True)

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            letters = [letter for key in dict.fromkeys(keys) if (letter := _get(connection, queue, key)) is not None]
            return sum(connection.run(_DELETE, (queue, letter.key)) for letter in letters)

        return await self._writer().call(work, durable=True)

    async def count(self) -> dict[str, int]:
        return await self._writer().read(lambda connection: dict(connection.rows(_COUNT)))

    def _now(self) -> int:
        return stamp_at(self._clock.time())


def _fence(connection: Connection) -> int:
    return connection.rows(_NEXT_FENCE)[0][0]


def _get(connection: Connection, queue: str, key: str) -> DeadLetter | None:
    found = connection.rows(_GET, (queue, key))
    if not found:
        found = connection.rows(_GET_BY_ID, (queue, key)) if key else []
    return _read(found[0]) if len(found) == 1 else None


def _entry(history: list[dict[str, Any]], at: float, what: str, why: str = "") -> list[dict[str, Any]]:
    entry: dict[str, Any] = {"at": at, "what": what}
    if why:
        entry["reason"] = why
    return [*history, entry][-_HISTORY:]


def _read(row: Row) -> DeadLetter:
    return DeadLetter(
        queue=row[0],
        key=row[1],
        message_id=row[2],
        body=row[3],
        reason=row[4],
        error_type=row[5],
        error=row[6],
        traceback=row[7],
        attempts=row[8],
        first_failed=from_microseconds(row[9]),
        last_failed=from_microseconds(row[10]),
        history=_decode_history(row[11]),
        fence=str(row[12]),
        marked=bool(row[13]),
    )
