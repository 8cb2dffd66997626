"""Halves: messages stored before their local work. A half changes only by (id, token)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ..contract import Half
from .link import Link
from .names import scope_of
from .scripts import Script
from .topology import to_microseconds

_STORE, _CHANGE = Script("half_store", lasting=True), Script("half_change", lasting=True)
_CLAIM, _READ = Script("half_claim"), Script("half_read")
_PART = 100


class RedisHalves:
    """The transaction storage."""

    def __init__(self, link: Callable[[], Link]) -> None:
        self._link = link

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        link, token = self._link(), secrets.token_hex(12)
        fields: list[Any] = ["service", half.service, "topic", half.topic, "body", half.body, "token", token]
        fields += ["checks", half.checks, "parked", int(half.parked), "error", half.error]
        scope = scope_of(half.service, half.topic)
        values = (half.id, scope, to_microseconds(due_in), to_microseconds(half.created), *fields)
        return token, await link.run(_STORE, _keys(link, half.id), values) == 1

    async def remove(self, id: str, token: str) -> bool:
        link = self._link()
        return await link.run(_CHANGE, _keys(link, id), (id, token)) == 1

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        link = self._link()
        values = (id, token, to_microseconds(delay), int(checked), int(parked), error)
        return await link.run(_CHANGE, _keys(link, id), values) == 1

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        if not scopes:
            return []
        return await self._claim("", limit, lease, [scope_of(service, topic) for service, topic in scopes])

    async def claim(self, id: str, lease: float) -> Half | None:
        found = await self._claim(id, 1, lease, []) if id else []
        return found[0] if found else None

    async def _claim(self, id: str, limit: int, lease: float, scopes: Sequence[str]) -> list[Half]:
        link = self._link()
        values = (id, limit, to_microseconds(lease), f"{secrets.token_hex(12)}-", *dict.fromkeys(scopes))
        return [_read(row) for row in await link.run(_CLAIM, (link.names.half, link.names.scopes), values)]

    async def fetch(self, id: str) -> Half | None:
        link = self._link()
        found = await link.run(_READ, (link.names.half,), (id,))
        return _read(found[0]) if found else None

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        link, found, start = self._link(), list[Half](), 0
        while len(found) < limit:
            ids = await link.command("ZRANGE", link.names.halves, start, start + _PART - 1)
            if not ids:
                break
            start += len(ids)
            halves = [_read(row) for row in await link.run(_READ, (link.names.half,), ids)]
            found += [half for half in halves if service is None or half.service == service]
        return found[:limit]


def _keys(link: Link, id: str) -> tuple[str, str, str]:
    return link.names.half + id, link.names.halves, link.names.scopes


def _read(row: Sequence[Any]) -> Half:
    name, flat = row
    fields = {field.decode(): value for field, value in zip(flat[::2], flat[1::2], strict=True)}
    return Half(
        id=name.decode(),
        service=fields["service"].decode(),
        topic=fields["topic"].decode(),
        body=fields["body"],
        token=fields["token"].decode(),
        due=int(fields["due"]) / 1e6,
        checks=int(fields["checks"]),
        parked=fields["parked"] == b"1",
        created=int(fields["created"]) / 1e6,
        error=fields["error"].decode(),
    )
