"""Idempotency keys.

    FREE(0) → CLAIMED(1, token, until_at = lease) → DONE(2, until_at = expiry)       failure: CLAIMED → FREE
    CLAIMED past its lease → CLAIMED under a new token; DONE past its expiry counts as not there

A token is `<row>-<secret>`. The secret is random and new for each call of `claim`, and a call claims a row once at
most, so no two claims of a row share a token. The row is found by it without an index of its own.
The renewal of a lease touches `until_at` alone; what acts under a token never reads it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock
from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .connect import Connection, insert
from .stamps import FOREVER, stamp_at, to_microseconds
from .writer import Writer

FREE, CLAIMED, DONE = 0, 1, 2
_DAY = 86_400 * 1_000_000
_CHUNK = 200

_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()

_LAST = 'SELECT coalesce(max(id), 0) FROM "easybus_key"'
_FIND = 'SELECT key, id, digest, state, starts, replay, until_at FROM "easybus_key" WHERE queue = ? AND key IN (%s)'
_ADD = 'INSERT INTO "easybus_key" (id, queue, key, digest, token, state, starts, replay, until_at)'
_UNLESS_KNOWN = " ON CONFLICT (queue, key) DO NOTHING"
_TAKE = (  # inside the transaction that read the row
    'UPDATE "easybus_key" SET digest = ?, token = ?, state = 1, starts = ?, replay = ?, until_at = ? WHERE id = ?'
)
_COMPLETE = 'UPDATE "easybus_key" SET state = 2, starts = 0, until_at = ? WHERE id = ? AND token = ? AND state = 1'
_HELD = (  # how many of these rows are claimed under this secret
    'SELECT count(*) FROM "easybus_key" WHERE id IN (SELECT value FROM json_each(?)) AND token = ? AND state = 1'
)
_COMPLETE_HELD = (  # in the transaction that found all of them held
    'UPDATE "easybus_key" SET state = 2, starts = 0, until_at = ? WHERE id IN (SELECT value FROM json_each(?))'
)
_RELEASE = 'UPDATE "easybus_key" SET state = 0, starts = 0, until_at = ? WHERE id = ? AND token = ? AND state = 1'
_RENEW = 'UPDATE "easybus_key" SET until_at = ? WHERE id = ? AND token = ? AND state = 1'
_LOOKUP = 'SELECT state, until_at FROM "easybus_key" WHERE queue = ? AND key = ?'
_PURGE = (
    'DELETE FROM "easybus_key" WHERE id IN '
    '(SELECT id FROM "easybus_key" WHERE state <> 1 AND until_at <= ? ORDER BY until_at LIMIT ?)'
)
_FORGET_ALL = 'DELETE FROM "easybus_key"'


class SqliteKeys:
    """The idempotency storage."""

    def __init__(self, clock: Clock, writer: Callable[[], Writer]) -> None:
        self._clock = clock
        self._writer = writer

    def _now(self) -> int:
        return stamp_at(self._clock.time())

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        writer = self._writer()

        def undo(results: list[ClaimResult]) -> None:  # the caller was cancelled: nobody will handle these
            tokens = [result.token for result in results if isinstance(result, Claimed)]
            if tokens:
                writer.later(lambda connection: release_keys(connection, tokens, self._now()), durable=True)

        return await writer.take(lambda connection: claim_keys(connection, batch, self._now()), undo, durable=True)

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        def work(connection: Connection) -> list[bool]:
            until = self._now() + to_microseconds(lease)
            return [connection.run(_RENEW, (until, *row_of(token))) == 1 for token in tokens]

        return await self._writer().call(work)

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        return await self._writer().call(lambda connection: complete_keys(connection, batch, self._now()), durable=True)

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        return await self._writer().call(lambda connection: release_keys(connection, tokens, self._now()), durable=True)

    async def lookup(self, queue: str, id: str) -> str:
        def look(connection: Connection) -> str:
            found = connection.rows(_LOOKUP, (queue, id))
            if not found or found[0][0] == FREE or found[0][1] <= self._now():
                return "free"
            return "done" if found[0][0] == DONE else "claimed"

        return await self._writer().read(look)

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        return _COMPLETE, (self._now() + to_microseconds(keep), *row_of(token))

    async def purge(self, limit: int = 1000) -> int:
        return await self._writer().call(lambda connection: connection.run(_PURGE, (self._now(), limit)))

    async def forget(self) -> None:
        await self._writer().call(lambda connection: connection.run(_FORGET_ALL))


def row_of(token: str) -> tuple[int, int]:
    """The row that a token names, and its secret; row 0, which is none, for what is no token."""
    number, _, secret = token.partition("-")
    if len(token) < 40 and token.isascii() and number.isdecimal() and secret.isdecimal():
        row, hidden = int(number), int(secret)
        if row <= FOREVER and hidden <= FOREVER:
            return row, hidden
    return 0, 0


def claim_keys(connection: Connection, batch: Sequence[Claim], now: int) -> list[ClaimResult]:
    """Claim, in the writer's transaction, in which nobody else changes a row between the look and the write."""
    secret = int.from_bytes(os.urandom(8), "big") >> 1
    last: int = connection.rows(_LAST)[0][0]
    rows = [
        (row, claim.queue, claim.id, claim.digest, secret, CLAIMED, 1, claim.replay, now + to_microseconds(claim.lease))
        for row, claim in enumerate(batch, last + 1)
    ]
    if insert(connection, _ADD, rows, _UNLESS_KNOWN) == len(batch):
        return [Claimed(f"{row[0]}-{secret}", False, 1) for row in rows]
    return _claim_known(connection, batch, now, secret, last)


def _claim_known(connection: Connection, batch: Sequence[Claim], now: int, secret: int, last: int) -> list[ClaimResult]:
    """As `claim_keys`, where some keys stood before; the rows above `last` were added for this very batch."""
    known = _find(connection, batch)
    held: dict[tuple[str, str], bytes] = {}  # claimed in this very batch
    results: list[ClaimResult] = []
    for claim in batch:
        key = (claim.queue, claim.id)
        if key in held:
            results.append(_BUSY if held[key] == claim.digest else _CONFLICT)
            continue
        row, digest, state, starts, replay, until_at = known[key]
        forgotten = state == DONE and until_at <= now
        if row > last:
            held[key] = claim.digest
            results.append(Claimed(f"{row}-{secret}", False, 1))
        elif digest != claim.digest and not forgotten:
            results.append(_CONFLICT)
        elif state != FREE and until_at > now:
            results.append(_BUSY if state == CLAIMED else _DONE)
        else:
            again = claim.replay and claim.replay != replay
            starts = 1 if again or forgotten else starts + 1
            until = now + to_microseconds(claim.lease)
            connection.run(_TAKE, (claim.digest, secret, starts, claim.replay or replay, until, row))
            held[key] = claim.digest
            results.append(Claimed(f"{row}-{secret}", not forgotten, starts))
    return results


def _find(connection: Connection, batch: Sequence[Claim]) -> dict[tuple[str, str], tuple[Any, ...]]:
    by_queue: dict[str, list[str]] = {}
    for claim in batch:
        by_queue.setdefault(claim.queue, []).append(claim.id)
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for queue, ids in by_queue.items():
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            part += [part[-1]] * (
                _padded(len(part)) - len(part)
            )  # few shapes of the statement, so each is prepared once
            for row in connection.rows(_FIND % ",".join("?" * len(part)), (queue, *part)):
                found[queue, row[0]] = row[1:]
    return found


def _padded(count: int) -> int:
    return next(size for size in (1, 4, 20, 60, _CHUNK) if size >= count)


def complete_keys(connection: Connection, batch: Sequence[tuple[str, float]], now: int) -> list[bool]:
    """CLAIMED → DONE, each under its token, in the writer's transaction."""
    groups: dict[tuple[int, float], list[int]] = defaultdict(list)
    held = [row_of(token) for token, _ in batch]
    if len({row for row, _ in held}) == len(batch):
        for (row, secret), (_, keep) in zip(held, batch, strict=True):
            groups[secret, keep].append(row)
        named = [(secret, keep, json.dumps(rows)) for (secret, keep), rows in groups.items()]
        if sum(connection.rows(_HELD, (rows, secret))[0][0] for secret, _, rows in named) == len(batch):
            for _, keep, rows in named:
                connection.run(_COMPLETE_HELD, (now + to_microseconds(keep), rows))
            return [True] * len(batch)
    # Some are not their holders', or there twice: which ones shows when they go one by one.
    return [
        connection.run(_COMPLETE, (now + to_microseconds(keep), *one)) == 1
        for one, (_, keep) in zip(held, batch, strict=True)
    ]


def release_keys(connection: Connection, tokens: Sequence[str], now: int) -> list[bool]:
    """CLAIMED → FREE, each under its token, in the writer's transaction."""
    return [connection.run(_RELEASE, (now + _DAY, *row_of(token))) == 1 for token in tokens]
