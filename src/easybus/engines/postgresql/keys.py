"""Idempotency keys.

    FREE(0) → CLAIMED(1, secret, until_at = lease) → DONE(2, until_at = expiry)       failure: CLAIMED → FREE
    CLAIMED past its lease → CLAIMED under a new secret; DONE past its expiry counts as not there

A token is `<row>-<secret>`, the secret a random number of its own, so that rows and secrets of many tokens need no
pairing. The key's row changes at claim, takeover, completion and release only. A renewal is a row
of `lease`: it never makes the completion in a handler's open transaction fail, whatever its isolation level.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .connections import Connection
from .names import Names, escape, indexed
from .session import Session

FREE, CLAIMED, DONE = 0, 1, 2
FOREVER = 1e10  # seconds: what a timestamp can still hold
_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()
_Key: TypeAlias = tuple[str, str]

_LIVE = (  # whether the key's claim or completion holds now; EXISTS would be planned as a hash of all leases
    "(key.until_at > now() OR (key.state = 1 AND coalesce((SELECT lease.until_at FROM {lease} AS lease "
    "WHERE lease.key_id = key.id AND lease.secret = key.secret), '-infinity') > now()))"
)
_CLAIM = (  # one owner a key: a row that another holds, or has done, or that has another digest, is not returned
    "INSERT INTO {key} AS key (queue, key, digest, secret, replay, until_at, state, starts, again) "
    "SELECT queue, key, digest, secret, replay, now() + make_interval(secs => seconds), 1, 1, false "
    "FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::text[], $6::float8[]) "
    "AS given(queue, key, digest, secret, replay, seconds) ON CONFLICT (queue, key) DO UPDATE SET "
    "digest = excluded.digest, secret = excluded.secret, until_at = excluded.until_at, state = 1, "
    "again = key.state <> 2, "
    "replay = CASE WHEN excluded.replay = '' THEN key.replay ELSE excluded.replay END, "
    "starts = CASE WHEN key.state = 2 OR excluded.replay NOT IN ('', key.replay) THEN 1 ELSE key.starts + 1 END "
    "WHERE CASE key.state WHEN 2 THEN key.until_at <= now() WHEN 0 THEN key.digest = excluded.digest "
    f"ELSE key.digest = excluded.digest AND NOT {_LIVE} END RETURNING queue, key, id, starts, again"
)
_LOOK = (  # OFFSET 0: looked up one by one
    "SELECT found.* FROM unnest($1::text[], $2::text[]) AS given(queue, key) CROSS JOIN LATERAL "
    f"(SELECT queue, key, digest, state, {_LIVE} FROM {{key}} AS key "
    "WHERE key.queue = given.queue AND key.key = given.key OFFSET 0) AS found"
)
COMPLETE = (  # CLAIMED → DONE, each under its token
    "UPDATE {key} SET state = 2, starts = 0, until_at = now() + make_interval(secs => $3) "
    "WHERE id = ANY ($1::bigint[]) AND secret = ANY ($2::bigint[]) AND state = 1 RETURNING id, secret"
)
_COMPLETE_ONE = (  # the last statement of a caller's transaction, which from now on may hold others up for 5 s at most
    "UPDATE {key} SET state = 2, starts = 0, until_at = clock_timestamp() + make_interval(secs => $1) "
    "WHERE id = $2 AND secret = $3 AND state = 1 "
    "RETURNING set_config('idle_in_transaction_session_timeout', '5000', true)"
)
_RELEASE = (  # CLAIMED → FREE, each under its token; forgotten in a day
    "UPDATE {key} SET state = 0, starts = 0, until_at = now() + interval '1 day' "
    "WHERE id = ANY ($1::bigint[]) AND secret = ANY ($2::bigint[]) AND state = 1 RETURNING id, secret"
)
_RENEW = (  # committed lazily: a renewal that is lost ends the lease
    "INSERT INTO {lease} AS lease (key_id, secret, until_at) "
    "SELECT id, secret, now() + make_interval(secs => $3) FROM {key} "
    "WHERE id = ANY ($1::bigint[]) AND secret = ANY ($2::bigint[]) AND state = 1 ORDER BY id "
    "ON CONFLICT (key_id) DO UPDATE SET secret = excluded.secret, until_at = excluded.until_at "
    "RETURNING key_id, secret, set_config('synchronous_commit', 'off', true)"
)
_LOOKUP = f"SELECT state, {_LIVE} FROM {{key}} AS key WHERE queue = $1 AND key = $2"
_PURGE = (
    "WITH gone AS (DELETE FROM {key} WHERE id = ANY (ARRAY(SELECT id FROM {key} WHERE state <> 1 AND until_at <= now() "
    "ORDER BY until_at LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING id), "
    "ended AS (DELETE FROM {lease} WHERE key_id IN (SELECT id FROM gone)) SELECT count(*) FROM gone"
)


class PostgresqlKeys:
    """The idempotency storage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        session = self._session

        def undo(results: list[ClaimResult]) -> None:  # the caller was cancelled: nobody will handle these
            self.give_back([result.token for result in results if isinstance(result, Claimed)])

        return await session.connections.run(lambda connection: claim_keys(connection, session.names, batch), undo=undo)

    def give_back(self, tokens: Sequence[str]) -> None:
        """What nobody will handle is free again."""
        if tokens:
            self._session.later(self.release(tokens))

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        return answers(tokens, await self._under(_RENEW, tokens, min(lease, FOREVER)))

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        by_keep: dict[float, list[str]] = defaultdict(list)
        for token, keep in batch:
            by_keep[keep].append(token)
        done: set[str] = set()
        for keep, tokens in by_keep.items():
            done |= await self._under(COMPLETE, tokens, min(keep, FOREVER))
        return answers([token for token, _ in batch], done)

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        return answers(tokens, await self._under(_RELEASE, tokens))

    async def _under(self, statement: str, tokens: Sequence[str], *given: Any) -> set[str]:
        """Do this to the rows of these tokens; returns the tokens that were the holders'."""
        statement = self._session.names(statement)
        ids, secrets = split(tokens)
        rows = await self._session.connections.run(lambda connection: connection.fetch(statement, ids, secrets, *given))
        return {f"{row[0]}-{row[1]}" for row in rows}

    async def lookup(self, queue: str, id: str) -> str:
        statement = self._session.names(_LOOKUP)
        found = await self._session.connections.run(
            lambda connection: connection.fetchrow(statement, escape(queue), indexed(id))
        )
        if found is None or found[0] == FREE or not found[1]:
            return "free"
        return "done" if found[0] == DONE else "claimed"

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        return self._session.names(_COMPLETE_ONE), (min(keep, FOREVER), *row_of(token))

    async def purge(self, limit: int = 1000) -> int:
        statement = self._session.names(_PURGE)
        return await self._session.connections.run(lambda connection: connection.fetchval(statement, limit))


def row_of(token: str) -> tuple[int, int]:
    """The row that a token names, and its secret; row 0, which is none, for what is no token."""
    row, _, secret = token.partition("-")
    known = all(part.isascii() and part.isdecimal() and len(part) < 20 for part in (row, secret))
    found = (int(row), int(secret)) if known else (0, 0)
    return found if max(found) < 1 << 63 else (0, 0)


def split(tokens: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows and secrets of tokens, in the order of the rows: batches that lock in one order make no deadlocks."""
    pairs = sorted({row_of(token) for token in tokens})
    return [row for row, _ in pairs], [secret for _, secret in pairs]


def answers(tokens: Sequence[str], done: set[str]) -> list[bool]:
    """For each token whether it was found; the second of a batch is not."""
    results: list[bool] = []
    for token in tokens:
        results.append(token in done)
        done.discard(token)
    return results


async def claim_keys(connection: Connection, names: Names, batch: Sequence[Claim]) -> list[ClaimResult]:
    """Claim keys, in one statement and, where some are not free, one look."""
    first: dict[_Key, int] = {}  # the first claim of each key in this batch
    keys = [(escape(claim.queue), indexed(claim.id)) for claim in batch]
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    secrets = [number >> 1 for number in struct.unpack(f"{len(batch)}Q", os.urandom(8 * len(batch)))]
    given = sorted(first.items())  # in one order everywhere: no deadlocks
    rows: list[Any] = await connection.fetch(
        names(_CLAIM),
        [key[0] for key, _ in given],
        [key[1] for key, _ in given],
        [batch[at].digest for _, at in given],
        [secrets[at] for _, at in given],
        [escape(batch[at].replay) for _, at in given],
        [min(batch[at].lease, FOREVER) for _, at in given],
    ) if given else []  # fmt: skip
    taken = {(row[0], row[1]): row for row in rows}
    others = [key for key in first if key not in taken]
    refused = await _why(connection, names, others) if others else {}
    results: list[ClaimResult] = []
    for at, (key, claim) in enumerate(zip(keys, batch, strict=True)):
        leader = first[key]
        if leader != at and key in taken:
            results.append(_BUSY if batch[leader].digest == claim.digest else _CONFLICT)
        elif key in taken:
            _, _, row, starts, again = taken[key]
            results.append(Claimed(f"{row}-{secrets[at]}", again, starts))
        else:
            results.append(_refusal(refused.get(key), claim))
    return results


async def _why(connection: Connection, names: Names, keys: Sequence[_Key]) -> dict[_Key, Any]:
    rows = await connection.fetch(names(_LOOK), [queue for queue, _ in keys], [key for _, key in keys])
    return {(row[0], row[1]): row for row in rows}


def _refusal(row: Any, claim: Claim) -> ClaimResult:
    """Why a key was not claimed; what has become free since then is still another's just now."""
    if row is None:
        return _BUSY
    _, _, digest, state, live = row
    if state == DONE and not live:
        return _BUSY
    if digest != claim.digest:
        return _CONFLICT
    return _DONE if state == DONE else _BUSY
