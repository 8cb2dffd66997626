"""Idempotency keys.

    FREE(0) → CLAIMED(1, secret, until_at = lease) → DONE(2, until_at = expiry)       failure: CLAIMED → FREE
    CLAIMED past its lease → CLAIMED under a new secret; DONE past its expiry counts as not there

A token is `<row>-<secret>`, the secret a random number of its own, so that rows and secrets of many tokens need no
pairing. The key's row changes at claim, takeover, completion and release only. A renewal is a row
of `lease`: it never makes the completion in a handler's open transaction fail, whatever its isolation level.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .completion import COMPLETE_ONE
from .connections import Connection
from .names import Names, escape, indexed
from .session import Session

FREE, CLAIMED, DONE = 0, 1, 2
FOREVER = 1e10  # seconds: what a timestamp can still hold
_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()
_MOST = (1 << 63) - 1

_LIVE = (  # whether the key's claim or completion holds now; EXISTS would be planned as a hash of all leases
    "(key.until_at > now() OR (key.state = 1 AND coalesce((SELECT lease.until_at FROM {lease} AS lease "
    "WHERE lease.key_id = key.id AND lease.secret = key.secret), '-infinity') > now()))"
)
_CLAIM = (  # one owner a key: a row that another holds, or has done, or that has another digest, is not returned
    "WITH claimed AS (INSERT INTO {key} AS key "
    "(queue, key, digest, secret, replay, until_at, forget_at, state, starts, again) "
    "SELECT $1, key, digest, $2 + place, coalesce(replay, ''), now() + make_interval(secs => $3), "
    "now() + make_interval(secs => $7), 1, 1, false "
    "FROM unnest($4::text[], $5::bytea[], $6::text[]) WITH ORDINALITY AS given(key, digest, replay, place) "
    "ON CONFLICT (queue, key) DO UPDATE SET "
    "digest = excluded.digest, secret = excluded.secret, until_at = excluded.until_at, state = 1, "
    "again = key.state <> 2, "
    "replay = CASE WHEN excluded.replay = '' THEN key.replay ELSE excluded.replay END, "
    "starts = CASE WHEN key.state = 2 OR excluded.replay NOT IN ('', key.replay) THEN 1 ELSE key.starts + 1 END "
    "WHERE CASE key.state WHEN 2 THEN key.until_at <= now() WHEN 0 THEN key.digest = excluded.digest "
    f"ELSE key.digest = excluded.digest AND NOT {_LIVE} END RETURNING secret - $2 AS place, id, secret, starts, again) "
    "SELECT array_agg(place), array_agg(id), array_agg(secret), array_agg(starts), array_agg(again) FROM claimed"
)
_CLAIM_LAZILY = f"{_CLAIM} WHERE (SELECT set_config('synchronous_commit', 'off', true)) = 'off'"
_LOOK = (  # OFFSET 0: looked up one by one
    "SELECT found.* FROM unnest($2::text[]) AS given(key) CROSS JOIN LATERAL "
    f"(SELECT key, digest, state, {_LIVE} FROM {{key}} AS key "
    "WHERE key.queue = $1 AND key.key = given.key OFFSET 0) AS found"
)
COMPLETE = (  # CLAIMED → DONE, each under its token
    "UPDATE {key} SET state = 2, starts = 0, until_at = now() + make_interval(secs => $3) "
    "WHERE id = ANY ($1::bigint[]) AND secret = ANY ($2::bigint[]) AND state = 1 RETURNING id, secret"
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
_PURGE = (  # of the next $1 to be looked at, those that are over go; the others are looked at when they are
    "WITH seen AS MATERIALIZED (SELECT id, state <> 1 AND until_at <= now() AS is_over FROM {key} "
    "WHERE forget_at <= now() ORDER BY forget_at LIMIT $1 FOR UPDATE SKIP LOCKED), "
    "gone AS (DELETE FROM {key} WHERE id = ANY (ARRAY(SELECT id FROM seen WHERE is_over)) RETURNING id), "
    "later AS (UPDATE {key} SET forget_at = greatest(until_at, now() + CASE state WHEN 1 THEN interval '1 hour' "
    "ELSE interval '0' END) WHERE id = ANY (ARRAY(SELECT id FROM seen WHERE NOT is_over))), "
    "ended AS (DELETE FROM {lease} WHERE key_id = ANY (ARRAY(SELECT id FROM gone))) "
    "SELECT (SELECT count(*) FROM seen), (SELECT count(*) FROM gone)"
)
_FORGET_ALL = "WITH leases AS (DELETE FROM {lease}) DELETE FROM {key}"


class PostgresqlKeys:
    """The idempotency storage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        session = self._session

        def undo(results: list[ClaimResult]) -> None:  # the caller was cancelled: nobody will handle these
            self.give_back([result.token for result in results if isinstance(result, Claimed)])

        async def work(connection: Connection) -> list[ClaimResult]:
            held: list[str] = []
            try:
                return await claim_keys(connection, session.names, batch, held)
            except BaseException:
                self.give_back(held)
                raise

        return await session.connections.run(work, undo=undo)

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
        return self._session.names(COMPLETE_ONE), (min(keep, FOREVER), *row_of(token))

    async def purge(self, limit: int = 1000) -> int:
        statement, gone = self._session.names(_PURGE), 0
        while gone < limit:
            left = limit - gone
            seen, some = await self._session.connections.run(
                lambda connection, left=left: connection.fetchrow(statement, left)
            )
            gone += some
            if seen < left:
                break
        return gone

    async def forget(self) -> None:
        statement = self._session.names(_FORGET_ALL)
        await self._session.connections.run(lambda connection: connection.execute(statement))


def row_of(token: str) -> tuple[int, int]:
    """The row that a token names, and its secret; row 0, which is none, for what is no token."""
    row, _, secret = token.partition("-")
    try:
        found = int(row), int(secret)
    except ValueError:
        return 0, 0
    return found if 0 <= found[0] <= _MOST and 0 <= found[1] <= _MOST else (0, 0)


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


async def claim_keys(
    connection: Connection, names: Names, batch: Sequence[Claim], held: list[str], spent: float = 0.0
) -> list[ClaimResult]:
    """Claim keys: for each queue one statement and, where some are not free, one look.

    `held`: tokens are noted here as they are claimed, for whoever gives them back if the rest fails. `spent`: seconds
    of their leases that are over.
    """
    groups: dict[tuple[str, float, bool, float], list[int]] = {}
    for at, claim in enumerate(batch):
        groups.setdefault((claim.queue, claim.lease, claim.lazy, claim.keep), []).append(at)
    results: list[ClaimResult] = [_BUSY] * len(batch)
    for places in groups.values():
        found = await _claim_in_one_queue(connection, names, [batch[at] for at in places], held, spent)
        for at, result in zip(places, found, strict=True):
            results[at] = result
    return results


async def _claim_in_one_queue(
    connection: Connection, names: Names, batch: Sequence[Claim], held: list[str], spent: float
) -> list[ClaimResult]:
    queue = escape(batch[0].queue)
    first: dict[str, int] = {}  # the first claim of each key in this batch
    keys = [indexed(claim.id) for claim in batch]
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    given = sorted(first)  # in one order everywhere: no deadlocks
    replays = [escape(batch[first[key]].replay) for key in given] if any(claim.replay for claim in batch) else []
    columns = await connection.fetchrow(
        names(_CLAIM_LAZILY if batch[0].lazy else _CLAIM),
        queue,
        int.from_bytes(os.urandom(8), "big") >> 2,
        min(batch[0].lease, FOREVER) - spent,
        given,
        [batch[first[key]].digest for key in given],
        replays,
        min(batch[0].keep + batch[0].lease, FOREVER) if batch[0].keep else 0.0,
    )
    taken: dict[str, ClaimResult] = {}
    if columns[0] is not None:
        for place, number, secret, starts, again in zip(*columns, strict=True):
            token = f"{number}-{secret}"
            held.append(token)
            taken[given[place - 1]] = Claimed(token, again, starts)
    refused: dict[str, Any] = {}
    if len(taken) < len(given):
        others = [key for key in given if key not in taken]
        refused = {row[0]: row for row in await connection.fetch(names(_LOOK), queue, others)}
    results: list[ClaimResult] = []
    for at, (key, claim) in enumerate(zip(keys, batch, strict=True)):
        if key not in taken:
            results.append(_refusal(refused.get(key), claim))
        elif first[key] == at:
            results.append(taken[key])
        else:
            results.append(_BUSY if batch[first[key]].digest == claim.digest else _CONFLICT)
    return results


def _refusal(row: Any, claim: Claim) -> ClaimResult:
    """Why a key was not claimed; what has become free since then is still another's just now."""
    if row is None:
        return _BUSY
    _, digest, state, live = row
    if state == DONE and not live:
        return _BUSY
    if digest != claim.digest:
        return _CONFLICT
    return _DONE if state == DONE else _BUSY
