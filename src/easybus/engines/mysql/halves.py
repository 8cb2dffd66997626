"""Halves: messages stored before their local work. A half changes only by (id, token)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..contract import Half
from .link import BEGIN, COMMIT, Link
from .names import held, micros, place, read
from .session import Session

_COLUMNS = "`key`, due_at, id, service, topic, body, token, checks, parked, created_at, error"
_STORE = (  # takes over what stands under the id, whose checks and age stay
    "INSERT INTO {half} (place, scope, id, service, topic, body, token, due_at, checks, parked, created_at, error) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, {now} + %s, %s, %s, IF(%s = 0, {now}, %s), %s) ON DUPLICATE KEY UPDATE "
    "scope = VALUES(scope), service = VALUES(service), topic = VALUES(topic), body = VALUES(body), "
    "token = VALUES(token), due_at = VALUES(due_at), parked = VALUES(parked), error = VALUES(error)"
)
_REMOVE = "DELETE FROM {half} WHERE place = %s AND token = %s"
_POSTPONE = (
    "UPDATE {half} SET due_at = {now} + %s, checks = checks + %s, parked = %s, error = %s "
    "WHERE place = %s AND token = %s"
)
_DUE = (  # each half to one checker
    f"SELECT {_COLUMNS} FROM {{half}} FORCE INDEX (due) WHERE scope = %s AND due_at <= {{now}} "
    "ORDER BY due_at, `key` LIMIT %s FOR UPDATE SKIP LOCKED"
)
_CLAIM = "UPDATE {half} SET token = CONCAT(%s, `key`), due_at = {now} + %s WHERE `key` IN %s"
_THESE = f"SELECT {_COLUMNS} FROM {{half}} WHERE `key` IN %s"
_FETCH = f"SELECT {_COLUMNS} FROM {{half}} WHERE place = %s"
_LOCKED = f"{_FETCH} FOR UPDATE"
_FIND = f"SELECT {_COLUMNS} FROM {{half}} WHERE %s IS NULL OR service = %s ORDER BY created_at, `key` LIMIT %s"


class MysqlHalves:
    """The transaction storage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        token = _token()
        created = micros(half.created)
        given = (
            place(half.id),
            place(half.service, half.topic),
            held(half.id),
            held(half.service),
            held(half.topic),
            half.body,
            token,
            micros(due_in),
            half.checks,
            half.parked,
            created,
            created,
            held(half.error),
        )
        stored = await self._session.connections.run(lambda link: link.one(_STORE, *given))
        return token, stored.changed == 2

    async def remove(self, id: str, token: str) -> bool:
        return await self._change(_REMOVE, place(id), token)

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        return await self._change(_POSTPONE, micros(delay), int(checked), parked, held(error), place(id), token)

    async def _change(self, statement: str, *given: Any) -> bool:
        return (await self._session.connections.run(lambda link: link.one(statement, *given))).changed == 1

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        if not scopes or limit < 1:
            return []
        looks = [(_DUE, place(service, topic), limit) for service, topic in sorted(set(scopes))]

        async def work(link: Link) -> list[Half]:
            due = sorted((row[1], row[0]) for result in (await link.run(BEGIN, *looks))[1:] for row in result.rows)
            return await _claim(link, [key for _, key in due[:limit]], lease)

        return await self._session.connections.run(work)

    async def claim(self, id: str, lease: float) -> Half | None:
        async def work(link: Link) -> list[Half]:
            rows = (await link.run(BEGIN, (_LOCKED, place(id))))[1].rows
            return await _claim(link, [row[0] for row in rows], lease)

        claimed = await self._session.connections.run(work)
        return claimed[0] if claimed else None

    async def fetch(self, id: str) -> Half | None:
        rows = (await self._session.connections.run(lambda link: link.one(_FETCH, place(id)))).rows
        return _read(rows[0]) if rows else None

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        of = None if service is None else held(service)
        found = await self._session.connections.run(lambda link: link.one(_FIND, of, of, limit))
        return [_read(row) for row in found.rows]


async def _claim(link: Link, keys: list[int], lease: float) -> list[Half]:
    """Give these, which are locked, fresh tokens, and end the transaction."""
    if not keys:
        await link.run(COMMIT)
        return []
    _, claimed, _ = await link.run((_CLAIM, f"{_token()}-", micros(lease), keys), (_THESE, keys), COMMIT)
    by_key = {row[0]: row for row in claimed.rows}
    return [_read(by_key[key]) for key in keys]


def _token() -> str:
    return os.urandom(12).hex()


def _read(row: Sequence[Any]) -> Half:
    _, due, name, service, topic, body, token, checks, parked, created, error = row
    return Half(
        id=read(name),
        service=read(service),
        topic=read(topic),
        body=body,
        token=read(token),
        due=due / 1e6,
        checks=checks,
        parked=bool(parked),
        created=created / 1e6,
        error=read(error),
    )
