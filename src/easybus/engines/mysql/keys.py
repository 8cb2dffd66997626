"""Idempotency keys.

    FREE(0) → CLAIMED(1, secret, until_at = lease) → DONE(2, until_at = expiry)       failure: CLAIMED → FREE
    CLAIMED past its lease → CLAIMED under a new secret; DONE past its expiry counts as not there

A token is `<row>-<secret>`, and the secret is one for all claims of a call. The key's row changes at claim, takeover,
completion and release only; a renewal is a row of `lease`, so that it never waits for a handler's open transaction.

    claim: add what is not there, look at all → ours are claimed; busy, done and conflict are answered
         → what looks free is locked, looked at again, and taken over
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .link import BEGIN, CLOCK, COMMIT, ROLLBACK, Link, Result, Rows, Step
from .names import ident, micros, place
from .session import Session

FREE, CLAIMED, DONE = 0, 1, 2
_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()

_LIVE = (  # whether the key's claim or completion holds now
    "(key_.until_at > {now} OR (key_.state = 1 AND EXISTS (SELECT 1 FROM {lease} AS lease WHERE lease.key_id = key_.id "
    "AND lease.secret = key_.secret AND lease.until_at > {now})))"
)
_ADD = (  # claimed, where the key is not there; left alone where it is
    "INSERT INTO {key} (place, digest, secret, replay, until_at, state, starts, again) VALUES %s "
    "ON DUPLICATE KEY UPDATE id = id"
)
_ADD_AND_LOOK = (  # the same and `_LOOK` in one, which MariaDB can
    f"{_ADD} RETURNING place, id, digest, secret, state, (until_at > @easybus_now OR (state = 1 AND EXISTS ("
    "SELECT 1 FROM {lease} AS lease WHERE lease.key_id = {key}.id AND lease.secret = {key}.secret "
    "AND lease.until_at > @easybus_now))), starts, again, replay"
)
_NEW = "(%s, %s, %s, %s, @easybus_now + %s, 1, 1, 0)"
_LOOK = (
    f"SELECT place, id, digest, secret, state, {_LIVE}, starts, again, replay FROM {{key}} AS key_ FORCE INDEX (place) "
    "WHERE place IN %s ORDER BY place"
)
_LOCKED = f"{_LOOK} FOR UPDATE SKIP LOCKED"  # what is not given is another's just now
_TAKE_OVER = (
    "UPDATE {key} SET digest = %s, secret = %s, replay = %s, until_at = {now} + %s, state = 1, starts = %s, again = %s "
    "WHERE id = %s"
)
_THESE = "id IN %s AND (id, secret) IN %s AND state = 1"
_HELD = f"SELECT id, secret FROM {{key}} WHERE {_THESE}"
_HELD_LOCKED = f"{_HELD} FOR UPDATE"
_COMPLETE = f"UPDATE {{key}} SET state = 2, starts = 0, until_at = @easybus_now + %s WHERE {_THESE}"
_COMPLETE_ONE = (  # the last statement of a caller's transaction
    "UPDATE {key} SET state = 2, starts = 0, until_at = {now} + %s WHERE id = %s AND secret = %s AND state = 1"
)
_RELEASE = f"UPDATE {{key}} SET state = 0, starts = 0, until_at = {{now}} + 86400000000 WHERE {_THESE}"  # for a day
_RENEW = (
    "INSERT INTO {lease} (key_id, secret, until_at) SELECT id, secret, {now} + %s FROM {key} WHERE "
    f"{_THESE} ON DUPLICATE KEY UPDATE secret = VALUES(secret), until_at = VALUES(until_at)"
)
_LOOKUP = f"SELECT state, {_LIVE} FROM {{key}} AS key_ WHERE place = %s"
_OVER = (
    "SELECT id FROM {key} FORCE INDEX (ended) WHERE state IN (0, 2) AND until_at <= {now} LIMIT %s "
    "FOR UPDATE SKIP LOCKED"
)
_FORGET = "DELETE FROM {key} WHERE id IN %s"
_FORGET_LEASES = "DELETE FROM {lease} WHERE key_id IN %s"
_AT_ONCE = 500


Part: TypeAlias = tuple[list[int], list[tuple[int, bytes]]]
"""Rows, and the same with their secrets: as many as one statement takes."""


class MysqlKeys:
    """The idempotency storage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        def undo(results: list[ClaimResult]) -> None:  # the caller was cancelled: nobody will handle these
            self.give_back([result.token for result in results if isinstance(result, Claimed)])

        wishes = Wishes(batch, self._session)  # one secret for all tries: what an earlier one has claimed is ours

        async def work(link: Link) -> list[ClaimResult]:
            return await wishes.granted(link, (await link.run(CLOCK, *wishes.steps))[1:]) if batch else []

        return await self._session.connections.run(work, undo=undo)

    def give_back(self, tokens: Sequence[str]) -> None:
        """What nobody will handle is free again."""
        if tokens:
            self._session.later(self.release(tokens))

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        these = Tokens(tokens)

        async def work(link: Link) -> set[str]:
            # Neither waits for the keys' rows, which handlers' transactions may hold.
            steps = [step for part in these.parts for step in ((_HELD, *part), (_RENEW, micros(lease), *part))]
            results = await link.run(BEGIN, *steps, COMMIT)
            return found(row for result in results[1::2] for row in result.rows)

        return these.answers(await self._session.connections.run(work) if these.parts else set())

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        by_keep: dict[float, list[str]] = defaultdict(list)
        for token, keep in batch:
            by_keep[keep].append(token)
        done: set[str] = set()
        for keep, tokens in by_keep.items():
            done |= await self._change(_COMPLETE, tokens, micros(keep))
        return Tokens([token for token, _ in batch]).answers(done)

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        return Tokens(tokens).answers(await self._change(_RELEASE, tokens))

    async def _change(self, statement: str, tokens: Sequence[str], *given: Any) -> set[str]:
        """Change the keys that are held under these tokens; returns which were."""
        parts = Tokens(tokens).parts

        async def work(link: Link) -> set[str]:
            changed = await change_held(link, parts, statement, *given)
            await link.run(COMMIT)
            return changed

        return await self._session.connections.run(work) if parts else set()

    async def lookup(self, queue: str, id: str) -> str:
        rows = (await self._session.connections.run(lambda link: link.one(_LOOKUP, place(queue, id)))).rows
        if not rows or rows[0][0] == FREE or not rows[0][1]:
            return "free"
        return "done" if rows[0][0] == DONE else "claimed"

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        row, secret = row_of(token)
        return self._session.names(_COMPLETE_ONE), (micros(keep), row, secret.decode())

    async def purge(self, limit: int = 1000) -> int:
        async def work(link: Link) -> int:
            over = [row[0] for row in (await link.run(BEGIN, (_OVER, limit)))[1].rows]
            if not over:
                await link.run(COMMIT)
                return 0
            return (await link.run((_FORGET, over), (_FORGET_LEASES, over), COMMIT))[0].changed

        return await self._session.connections.run(work)


class Tokens:
    """Tokens of one call: what they name, each once and in the order of the rows, in parts for one statement each."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        rows = sorted({pair for token in tokens if (pair := row_of(token))[0]})
        self.parts: list[Part] = []
        for begin in range(0, len(rows), _AT_ONCE):
            part = rows[begin : begin + _AT_ONCE]
            self.parts.append(([row for row, _ in part], part))

    def answers(self, done: set[str]) -> list[bool]:
        """For each token whether it is among those; the second of a batch is not."""
        left = done.copy()
        results: list[bool] = []
        for token in self._tokens:
            results.append(token in left)
            left.discard(token)
        return results


async def complete_held(link: Link, parts: Sequence[Part], keep: float) -> set[str]:
    """Begin a transaction, and complete the keys that are held; returns their tokens."""
    return await change_held(link, parts, _COMPLETE, micros(keep))


async def change_held(link: Link, parts: Sequence[Part], statement: str, *given: Any) -> set[str]:
    """Begin a transaction, and change the keys that are held; returns their tokens."""
    changes: list[Step] = [(statement, *given, *part) for part in parts]
    results = await link.run(BEGIN, CLOCK, *changes)
    if sum(result.changed for result in results) == sum(len(rows) for rows, _ in parts):
        return found(pair for _, pairs in parts for pair in pairs)
    # Some are not: which, is seen only before the change.
    looks: list[Step] = [
        step for part, change in zip(parts, changes, strict=True) for step in ((_HELD_LOCKED, *part), change)
    ]
    results = await link.run(ROLLBACK, BEGIN, *looks)
    return found(row for result in results[2::2] for row in result.rows)


def found(rows: Iterable[Any]) -> set[str]:
    """The tokens of rows."""
    return {f"{row[0]}-{row[1].decode()}" for row in rows}


def row_of(token: str) -> tuple[int, bytes]:
    """The row that a token names, and its secret; row 0, which is none, for what is no token."""
    number, _, secret = token.partition("-")
    row = ident(number)
    return (row, secret.encode()) if row and secret.isascii() and secret.isalnum() else (0, b"-")


class _Row(NamedTuple):
    place: bytes
    id: int
    digest: bytes
    secret: bytes
    state: int
    live: int
    starts: int
    again: int
    replay: bytes


class Wishes:
    """A batch of claims: `steps`, run after `CLOCK`, then what they gave to `granted`."""

    def __init__(self, batch: Sequence[Claim], session: Session) -> None:
        self._batch = batch
        self._secret = os.urandom(12).hex().encode()
        self.tokens: list[str] = []
        """Those of keys that were claimed at once, even where a takeover fails afterwards."""
        self._places = [place(claim.queue, claim.id) for claim in batch]
        self._first: dict[bytes, int] = {}  # the first claim of each key
        for at, where in enumerate(self._places):
            self._first.setdefault(where, at)
        ordered = sorted(self._first)  # in one order everywhere: no deadlocks
        self.steps: list[Step] = []
        for begin in range(0, len(ordered), _AT_ONCE):
            part = ordered[begin : begin + _AT_ONCE]
            rows = [self._row(batch[self._first[where]], where) for where in part]
            if session.names.mariadb:
                self.steps.append((_ADD_AND_LOOK, Rows(_NEW, rows)))
            else:
                self.steps += [(_ADD, Rows(_NEW, rows)), (_LOOK, part)]

    def _row(self, claim: Claim, where: bytes) -> tuple[Any, ...]:
        return (where, claim.digest, self._secret, claim.replay.encode("utf-8", "surrogatepass"), micros(claim.lease))

    async def granted(self, link: Link, results: Sequence[Result]) -> list[ClaimResult]:
        """The results, by what the steps gave; what looks free is taken over first."""
        given: dict[bytes, ClaimResult] = {}
        free: list[bytes] = []
        for row in (_Row(*row) for result in results for row in result.rows):
            if row.secret == self._secret:
                given[row.place] = Claimed(self._token(row), bool(row.again), row.starts)
                self.tokens.append(self._token(row))
                continue
            refusal = _refusal(row, self._batch[self._first[row.place]])
            if refusal is None:
                free.append(row.place)
            else:
                given[row.place] = refusal
        for begin in range(0, len(free), _AT_ONCE):
            given |= await self._take_over(link, free[begin : begin + _AT_ONCE])
        return [self._result(at, given.get(where, _BUSY)) for at, where in enumerate(self._places)]

    async def _take_over(self, link: Link, places: list[bytes]) -> dict[bytes, ClaimResult]:
        given: dict[bytes, ClaimResult] = {}
        steps: list[Step] = []
        for row in (_Row(*row) for row in (await link.run(BEGIN, (_LOCKED, places)))[1].rows):
            claim = self._batch[self._first[row.place]]
            refusal = _refusal(row, claim)
            if refusal is not None:
                given[row.place] = refusal
                continue
            replay = claim.replay.encode("utf-8", "surrogatepass")
            again = row.state != DONE
            starts = row.starts + 1 if again and replay in (b"", row.replay) else 1
            changed = (claim.digest, self._secret, replay or row.replay, micros(claim.lease), starts, again, row.id)
            steps.append((_TAKE_OVER, *changed))
            given[row.place] = Claimed(self._token(row), again, starts)
        await link.run(*steps, COMMIT)
        return given

    def _token(self, row: _Row) -> str:
        return f"{row.id}-{self._secret.decode()}"

    def _result(self, at: int, given: ClaimResult) -> ClaimResult:
        leader = self._first[self._places[at]]
        if leader == at or not isinstance(given, Claimed):
            return given if leader == at or self._batch[leader].digest == self._batch[at].digest else _CONFLICT
        return _BUSY if self._batch[leader].digest == self._batch[at].digest else _CONFLICT


def _refusal(row: _Row, claim: Claim) -> ClaimResult | None:
    """Why a key cannot be claimed now; None: it can."""
    if row.state == DONE and not row.live:
        return None
    if row.digest != claim.digest:
        return _CONFLICT
    if row.state == DONE:
        return _DONE
    return _BUSY if row.state == CLAIMED and row.live else None
