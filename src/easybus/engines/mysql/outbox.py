"""The outbox: rows that callers' transactions commit, for relays to publish.

The server gives a transaction no number that its statements could read. So each row bears a `lane`, which the session
remembers beside how many transactions it had begun and ended by then: while it has ended none since, and the lane's
rows are there and untouched by relays, a send goes on with it; else it begins a new one. All rows of one transaction
are in one lane, in the order of their ids. An end that is not counted (by a definition such as CREATE TABLE, or where
MySQL runs without its performance schema) puts two transactions into one lane, which is relayed as one.

    claim: look for lanes of which no row is claimed or backed off → lock their rows → look again → claim them, commit
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ...clock import Clock, wait
from ..contract import OutboxRow, Publication
from .link import BEGIN, COMMIT, Link
from .names import held, micros, place, read
from .session import Session
from .waking import LONGEST, OUTBOX

_COLUMNS = (
    "id, lane, to_topic, name, body, route_key, delay, dedupe_id, `require`, token, failures, error, created_at, "
    "due_at <= {now}"
)
_LANE = (  # in the caller's transaction: plain reads, which lock nothing
    "SELECT IF(@easybus_ended <=> counted.ended AND EXISTS (SELECT 1 FROM {outbox} WHERE lane = @easybus_lane "
    "AND token = '' AND failures = 0 AND parked = 0), @easybus_lane, %s), counted.ended "
    "INTO @easybus_lane, @easybus_ended FROM (SELECT SUM(variable_value) AS ended FROM {status} "
    "WHERE variable_name IN ('Com_begin', 'Com_commit', 'Com_rollback')) AS counted"
)
_WRITE = (  # the next rows of the caller's transaction, in their order
    "INSERT INTO {outbox} (lane, scope, origin, to_topic, name, body, route_key, delay, dedupe_id, `require`, "
    "error, created_at) VALUES "
)
_WRITTEN = (  # in hexadecimal, so that neither the session's charset nor its sql_mode has a say
    "(@easybus_lane, UNHEX(%s), %s, %s, UNHEX(%s), UNHEX(%s), UNHEX(%s), %s, UNHEX(%s), %s, '', {now})"
)
_TOGETHER = "BEGIN NOT ATOMIC {}; {}; END"
"""Two statements as MariaDB takes them in one, which begins no transaction; MySQL has no such."""
_FREE = (  # the lanes of the oldest due rows, each looked at once; and again under its rows' locks
    "SELECT lane FROM (SELECT DISTINCT lane FROM (SELECT lane FROM {outbox} FORCE INDEX (free) "
    "WHERE scope = %s AND parked = 0 AND due_at <= {now} ORDER BY due_at, id LIMIT %s) AS due) AS free "
    "WHERE NOT EXISTS (SELECT 1 FROM {outbox} AS other FORCE INDEX (of_lane) WHERE other.lane = free.lane "
    "AND other.scope = %s AND other.parked = 0 AND other.due_at > {now})"
)
_LOCK = (
    f"SELECT {_COLUMNS} FROM {{outbox}} FORCE INDEX (of_lane) WHERE lane IN %s AND scope = %s AND parked = 0 "
    "ORDER BY lane, id FOR UPDATE"
)
_CLAIM = "UPDATE {outbox} SET token = %s, due_at = {now} + %s WHERE id IN %s"
_DELETE = "DELETE FROM {outbox} WHERE id IN %s AND (id, token) IN %s"
_UNDER = "WHERE lane = %s AND token = %s"
_RELEASE = f"UPDATE {{outbox}} SET token = '', due_at = {{now}} + %s, failures = failures + %s, error = %s {_UNDER}"
_PARK = f"UPDATE {{outbox}} SET token = '', due_at = 0, parked = 1, failures = failures + 1, error = %s {_UNDER}"
_UNPARK = "UPDATE {outbox} SET parked = 0, due_at = 0, token = '', error = '' WHERE lane = %s AND parked = 1"
_FIND = (
    f"SELECT {_COLUMNS} FROM {{outbox}} WHERE (%s IS NULL OR scope = %s) AND (parked = 1 OR %s = 0) "
    "ORDER BY id LIMIT %s"
)
_AT_ONCE = 500
_ERROR = 60_000  # bytes kept of an error


class MysqlOutbox:
    """The outbox storage."""

    def __init__(self, clock: Clock, session: Session) -> None:
        self._clock = clock
        self._session = session

    @property
    def url(self) -> str:
        """Which database this is, for errors."""
        return self._session.location.url

    def statements(self, service: str, batch: Sequence[Publication]) -> list[tuple[str, tuple[Any, ...]]]:
        if not batch:
            return []
        origin, scope = os.urandom(12).hex(), place(service).hex()
        rows: list[tuple[Any, ...]] = []
        for at, item in enumerate(batch):
            texts = (held(item.name).hex(), item.body.hex(), held(item.route_key).hex())
            row = (scope, f"{origin}.{at}", int(item.to_topic), *texts)  # the origin: so that it is written once
            rows.append((*row, item.delay, held(item.dedupe_id).hex(), int(item.require)))
        inserts: list[tuple[str, tuple[Any, ...]]] = []
        begin = size = 0
        for at, item in enumerate(batch):
            size += len(item.body)
            if size > self._session.caps.max_body and at > begin:
                inserts.append(self._insert(rows[begin:at]))
                begin, size = at, len(item.body)
        inserts.append(self._insert(rows[begin:]))
        lane = self._session.names(_LANE)
        if not self._session.names.mariadb:
            return [(lane, (origin,)), *inserts]
        (statement, values), *others = inserts
        return [(_TOGETHER.format(lane, statement), (origin, *values)), *others]

    def _insert(self, rows: list[tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
        written = ", ".join([self._session.names(_WRITTEN)] * len(rows))
        return self._session.names(_WRITE) + written, tuple([value for row in rows for value in row])

    def identity(self) -> tuple[str, str]:
        return self._session.identity

    async def claim(self, service: str, limit: int, lease: float) -> list[OutboxRow]:
        scope, token = place(service), os.urandom(12).hex()

        async def work(link: Link) -> list[Any]:
            lanes = list(dict.fromkeys(row[0] for row in (await link.one(_FREE, scope, limit, scope)).rows))
            if not lanes:
                return []
            rows = (await link.run(BEGIN, (_LOCK, lanes, scope)))[1].rows
            taken = {row[1] for row in rows if not row[-1]}  # by another, meanwhile
            free = [row for row in rows if row[1] not in taken]
            claims = [(_CLAIM, token, micros(lease), [row[0] for row in free])] if free else []
            await link.run(*claims, COMMIT)
            return free

        rows = sorted(await self._session.connections.run(work))
        first: dict[bytes, int] = {}
        for row in rows:
            first.setdefault(row[1], row[0])
        rows.sort(key=lambda row: first[row[1]])
        return [_read(row, token) for row in rows]

    async def delete(self, rows: Sequence[tuple[str, str]]) -> int:
        ordered = sorted((int(row), token) for row, token in rows)
        removed = 0
        for begin in range(0, len(ordered), _AT_ONCE):
            part = ordered[begin : begin + _AT_ONCE]
            removed += await self._change(_DELETE, [row for row, _ in part], part)
        return removed

    async def release(self, transaction: str, token: str, delay: float, error: str = "") -> None:
        given = (micros(delay), int(bool(error)), held(error)[:_ERROR], transaction, token)
        await self._change(_RELEASE, *given)
        self._session.watchers.wake([OUTBOX])

    async def park(self, transaction: str, token: str, error: str) -> None:
        await self._change(_PARK, held(error)[:_ERROR], transaction, token)

    async def unpark(self, transaction: str) -> bool:
        done = await self._change(_UNPARK, transaction) > 0
        self._session.watchers.wake([OUTBOX])
        return done

    async def _change(self, statement: str, *given: Any) -> int:
        return (await self._session.connections.run(lambda link: link.one(statement, *given))).changed

    async def find(self, service: str | None = None, *, parked: bool = False, limit: int = 100) -> list[OutboxRow]:
        scope = None if service is None else place(service)
        found = await self._session.connections.run(lambda link: link.one(_FIND, scope, scope, int(parked), limit))
        return [_read(row) for row in found.rows]

    async def wait(self, seconds: float) -> None:
        # Callers' commits tell nobody.
        watchers = self._session.watchers
        watcher = watchers.watch(OUTBOX)
        try:
            await wait(self._clock, watcher, min(seconds, LONGEST))
        finally:
            watchers.forget(OUTBOX, watcher)


def _read(row: Sequence[Any], claimed: str = "") -> OutboxRow:
    number, lane, to_topic, name, body, route_key, delay, dedupe_id, require, token, failures, error, created, _ = row
    return OutboxRow(
        id=str(number),
        transaction=read(lane),
        position=number,
        publication=Publication(
            to_topic=bool(to_topic),
            name=read(name),
            body=body,
            route_key=read(route_key),
            delay=delay,
            dedupe_id=read(dedupe_id),
            require=bool(require),
        ),
        token=claimed or read(token),
        failures=failures,
        error=error.decode("utf-8", "replace"),
        created=created / 1e6,
    )
