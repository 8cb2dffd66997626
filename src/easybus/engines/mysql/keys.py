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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from ...errors import EasybusError
from ..contract import Busy, Claim, Claimed, ClaimResult, Conflict, Done
from .failures import SHORT, code
from .link import BEGIN, CLOCK, COMMIT, ROLLBACK, Link, Result, Rows, Sql, Step
from .names import ident, micros, place
from .picking import Part, parts
from .session import Session

FREE, CLAIMED, DONE = 0, 1, 2
_BUSY, _DONE, _CONFLICT = Busy(), Done(), Conflict()

_LIVE = (  # whether the key's claim or completion holds now
    "(key_.until_at > {now} OR (key_.state = 1 AND EXISTS (SELECT 1 FROM {lease} AS lease WHERE lease.key_id = key_.id "
    "AND lease.secret = key_.secret AND lease.until_at > {now})))"
)
_ADD = (  # claimed, where the key is not there; left alone where it is
    "INSERT INTO {key} (place, digest, secret, until_at, forget_at) VALUES %s ON DUPLICATE KEY UPDATE id = id"
)
_ADD_EACH = _ADD.replace("forget_at)", "forget_at, replay)")
_AND_LOOK = (  # the same and `_LOOK` in one, which MariaDB can
    " RETURNING place, id, digest, secret, state, (until_at > @easybus_now OR (state = 1 AND EXISTS ("
    "SELECT 1 FROM {lease} AS lease WHERE lease.key_id = {key}.id AND lease.secret = {key}.secret "
    "AND lease.until_at > @easybus_now))), starts, again, replay"
)
_ALIKE = "SET @easybus_secret = %s, @easybus_until = @easybus_now + %s, @easybus_forget = %s"  # for all rows
_NEW = "(%s, %s, @easybus_secret, @easybus_until, @easybus_forget)"
_NEW_EACH = "(%s, %s, @easybus_secret, @easybus_now + %s, @easybus_forget, %s)"
_LOOK = (
    f"SELECT place, id, digest, secret, state, {_LIVE}, starts, again, replay FROM {{key}} AS key_ FORCE INDEX (place) "
    "WHERE place IN %s ORDER BY place"
)
_LOCKED = f"{_LOOK} FOR UPDATE SKIP LOCKED"  # what is not given is another's just now
_TAKE_OVER = (
    "UPDATE {key} SET digest = %s, secret = %s, replay = %s, until_at = {now} + %s, state = 1, starts = %s, again = %s "
    "WHERE id = %s"
)
_HELD = "SELECT id, secret FROM {key} WHERE state = 1 AND %s"
_HELD_LOCKED = f"{_HELD} FOR UPDATE"
_ENDED = "UPDATE {key} SET state = %s, starts = 0, until_at = @easybus_now + %s, forget_at = %s WHERE state = 1 AND %s"
_COMPLETE_ONE = (  # the last statement of a caller's transaction
    "UPDATE {key} SET state = 2, starts = 0, until_at = {now} + %s, forget_at = (({now} + %s) DIV %s + 1) * %s "
    "WHERE id = %s AND secret = %s AND state = 1"
)
_RENEW = (
    "INSERT INTO {lease} (key_id, secret, until_at) SELECT id, secret, {now} + %s FROM {key} WHERE "
    "state = 1 AND %s ON DUPLICATE KEY UPDATE secret = VALUES(secret), until_at = VALUES(until_at)"
)
_LOOKUP = f"SELECT state, {_LIVE} FROM {{key}} AS key_ WHERE place = %s"
_OVER = (
    "SELECT id FROM {key} FORCE INDEX (ended) WHERE forget_at <= {now} AND state <> 1 AND until_at <= {now} "
    "ORDER BY forget_at LIMIT %s FOR UPDATE SKIP LOCKED"
)
_FORGET = "DELETE FROM {key} WHERE id IN %s"
_FORGET_LEASES = "DELETE FROM {lease} WHERE key_id IN %s"
_FORGET_ALL: tuple[Step, ...] = (("DELETE FROM {key}",), ("DELETE FROM {lease}",))
_AT_ONCE = 500
_COUNT_ANEW: Step = ("SET @easybus_now = {now}, @easybus_changed = 0",)
_COUNT: Step = ("SET @easybus_changed = @easybus_changed + ROW_COUNT()",)
_ALL = (  # else fails: `SHORT`
    "SET @easybus_changed = IF(@easybus_changed + ROW_COUNT() = %s, 0, (SELECT 1 UNION SELECT 2))"
)
_RELEASED = 86_400.0
"""Seconds for which a released key is remembered."""

Held: TypeAlias = Part[tuple[int, bytes]]
"""Rows with their secrets, of one statement."""


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

        try:
            return await self._session.connections.run(work, undo=undo)
        except EasybusError:
            self.give_back(wishes.tokens)
            raise

    def give_back(self, tokens: Sequence[str]) -> None:
        """What nobody will handle is free again."""
        if tokens:
            self._session.later(self.release(tokens))

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        held = held_under(tokens)

        async def work(link: Link) -> set[str]:
            # Neither waits for the keys' rows, which handlers' transactions may hold.
            renewed = [((_HELD, part.where), (_RENEW, micros(lease), part.where)) for part in held]
            steps: list[Step] = [step for pair in renewed for step in pair]
            results = await link.run(BEGIN, *steps, COMMIT)
            return found(row for result in results[1::2] for row in result.rows)

        return answers(tokens, await self._session.connections.run(work) if held else set())

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        by_keep: dict[float, list[str]] = defaultdict(list)
        for token, keep in batch:
            by_keep[keep].append(token)
        done: set[str] = set()
        for keep, tokens in by_keep.items():
            done |= await self._change(tokens, ended(DONE, keep))
            self._session.keep = keep
        return answers([token for token, _ in batch], done)

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        return answers(tokens, await self._change(tokens, ended(FREE, _RELEASED)))

    async def _change(self, tokens: Sequence[str], change: Step) -> set[str]:
        """Change the keys that are held under these tokens; returns which were."""
        held = held_under(tokens)
        return await self._session.connections.run(lambda link: change_held(link, held, change)) if held else set()

    async def lookup(self, queue: str, id: str) -> str:
        rows = (await self._session.connections.run(lambda link: link.one(_LOOKUP, place(queue, id)))).rows
        if not rows or rows[0][0] == FREE or not rows[0][1]:
            return "free"
        return "done" if rows[0][0] == DONE else "claimed"

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        row, secret = row_of(token)
        kept = micros(keep)
        return self._session.names(_COMPLETE_ONE), (kept, kept, grain(kept), grain(kept), row, secret.decode())

    async def purge(self, limit: int = 1000) -> int:
        async def work(link: Link) -> int:
            over = [row[0] for row in (await link.run(BEGIN, (_OVER, limit)))[1].rows]
            if not over:
                await link.run(COMMIT)
                return 0
            return (await link.run((_FORGET, over), (_FORGET_LEASES, over), COMMIT))[0].changed

        return await self._session.connections.run(work)

    async def forget(self) -> None:
        await self._session.connections.run(lambda link: link.run(BEGIN, *_FORGET_ALL, COMMIT))


def held_under(tokens: Sequence[str]) -> list[Held]:
    """The rows that tokens name, each once, in their order."""
    return parts(sorted({pair for token in tokens if (pair := row_of(token))[0]}), "secret")


def answers(tokens: Sequence[str], done: set[str]) -> list[bool]:
    """For each token whether it is among those; the second of a batch is not."""
    if len(done) == len(tokens):
        return [True] * len(tokens)
    left = done.copy()
    results: list[bool] = []
    for token in tokens:
        results.append(token in left)
        left.discard(token)
    return results


def ended(state: int, keep: float) -> Step:
    """What frees keys, or marks them as done, and remembers that for so long."""
    return (_ENDED, state, micros(keep), _forget_at(micros(keep)))


async def change_held(
    link: Link, held: Sequence[Held], change: Step, then: Callable[[set[str]], Sequence[Step]] = lambda done: ()
) -> set[str]:
    """Change the keys that are held, and do what is then to be done, in one transaction; returns their tokens."""
    changes: list[Step] = [(*change, part.where) for part in held]
    counted: list[Step] = [step for one in changes for step in (one, _COUNT)][:-1]
    everything = found(pair for part in held for pair in part.rows)
    number = sum(len(part.rows) for part in held)
    try:
        await link.run(BEGIN, _COUNT_ANEW, *counted, (_ALL, number), *then(everything), COMMIT)
        return everything
    except Exception as error:
        if code(error) != SHORT:
            raise
    # Some are not: which, is seen only before the change.
    looks: list[Step] = [
        step for part, one in zip(held, changes, strict=True) for step in ((_HELD_LOCKED, part.where), one)
    ]
    results = await link.run(ROLLBACK, BEGIN, CLOCK, *looks)
    done = found(row for result in results[3::2] for row in result.rows)
    await link.run(*then(done), COMMIT)
    return done


def _forget_at(keep: int) -> Sql:
    """When a row is to be looked at to be forgotten, in microseconds: at the end of `keep` or a little later, so that
    a key mostly has the same time when it is claimed as when it is done, and the index is left alone."""
    return Sql(f"((@easybus_now + {keep}) DIV {grain(keep)} + 1) * {grain(keep)}")


def grain(keep: int) -> int:
    """The steps of such times: a thirty-second of `keep`, to a sixteenth."""
    return 1 << max(0, (keep >> 4).bit_length() - 1)


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
        self._text = os.urandom(12).hex()
        self._secret = self._text.encode()
        self.tokens: list[str] = []
        """Those of keys that were claimed, or may have been, where something fails afterwards."""
        self._places = [place(claim.queue, claim.id) for claim in batch]
        self._first: dict[bytes, int] = {}  # the first claim of each key
        for at, where in enumerate(self._places):
            self._first.setdefault(where, at)
        ordered = sorted(self._first)  # in one order everywhere: no deadlocks
        self.steps: list[Step] = []
        if not batch:
            return
        # What all rows have in common is written once: half of what the server would have to read.
        lease = batch[0].lease
        alike = all(claim.lease == lease and not claim.replay for claim in batch)
        self.steps.append((_ALIKE, self._secret, micros(lease), _forget_at(micros(session.keep))))
        add, new, row = (_ADD, _NEW, _row) if alike else (_ADD_EACH, _NEW_EACH, _row_each)
        for begin in range(0, len(ordered), _AT_ONCE):
            part = ordered[begin : begin + _AT_ONCE]
            rows = Rows(new, [row(batch[self._first[where]], where) for where in part])
            if session.names.mariadb:
                self.steps.append((add + _AND_LOOK, rows))
            else:
                self.steps += [(add, rows), (_LOOK, part)]

    async def granted(self, link: Link, results: Sequence[Result]) -> list[ClaimResult]:
        """The results, by what the steps gave; what looks free is taken over first."""
        given: dict[bytes, ClaimResult] = {}
        free: list[bytes] = []
        secret = self._secret
        for row in (_Row._make(row) for result in results for row in result.rows):
            if row.secret == secret:
                token = self._token(row)
                given[row.place] = Claimed(token, bool(row.again), row.starts)
                self.tokens.append(token)
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
            token = self._token(row)
            given[row.place] = Claimed(token, again, starts)
            self.tokens.append(token)
        await link.run(*steps, COMMIT)
        return given

    def _token(self, row: _Row) -> str:
        return f"{row.id}-{self._text}"

    def _result(self, at: int, given: ClaimResult) -> ClaimResult:
        leader = self._first[self._places[at]]
        if leader == at or not isinstance(given, Claimed):
            return given if leader == at or self._batch[leader].digest == self._batch[at].digest else _CONFLICT
        return _BUSY if self._batch[leader].digest == self._batch[at].digest else _CONFLICT


def _row(claim: Claim, where: bytes) -> tuple[Any, ...]:
    return (where, claim.digest)


def _row_each(claim: Claim, where: bytes) -> tuple[Any, ...]:
    return (where, claim.digest, micros(claim.lease), claim.replay.encode("utf-8", "surrogatepass"))


def _refusal(row: _Row, claim: Claim) -> ClaimResult | None:
    """Why a key cannot be claimed now; None: it can."""
    if row.state == DONE and not row.live:
        return None
    if row.digest != claim.digest:
        return _CONFLICT
    if row.state == DONE:
        return _DONE
    return _BUSY if row.state == CLAIMED and row.live else None
