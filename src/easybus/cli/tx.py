"""Messages that wait for a transaction: halves (check-back), and rows of the outbox.

half             publish: claimed → published, confirmed → removed        discard: claimed → removed
outbox, parked   publish: due again, the service's relay publishes it     discard: its rows are deleted
outbox, else     is being relayed: nothing is to be done
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import typer

from ..connection import Publisher
from ..engines.contract import Half, OutboxRow, OutboxStorage
from ..errors import EnvelopeError, NotDeclared
from ..message import Message
from ..sending.transaction import publication_of
from ..shown import visible, visible_bytes
from .output import Failure, ago, close_to, confirm, guarded, note, payload_fields, say, show_json, show_table, when
from .target import AppOption, FactoryOption, JsonOption, Opened, StorageOption, Target, UrlOption, YesOption, opened

commands = typer.Typer(name="tx", help="Messages that wait for a transaction's outcome.", no_args_is_help=True)

_LEASE = 60.0
_ALL = 1_000_000

_RowKey: TypeAlias = tuple[str, str]
"""Transaction and id: ids alone are each database's own."""

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The message's id, or an outbox transaction's.")]
ServiceOption = Annotated[str | None, typer.Option("--service", help="Only of this service.")]


@dataclass(frozen=True)
class _Waiting:
    """A half, or one transaction's rows in the outbox."""

    half: Half | None
    rows: tuple[OutboxRow, ...] = ()
    outbox: OutboxStorage | None = None

    @property
    def id(self) -> str:
        return self.half.id if self.half is not None else self.rows[0].transaction


@commands.command("list")
@guarded
async def list_(
    service: ServiceOption = None,
    parked: Annotated[bool, typer.Option("--parked", help="Only those that need a person.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of each kind at most.")] = 100,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show halves and outbox rows that are not published yet, oldest first."""
    async with opened(Target(app, factory, url, storage)) as at:
        halves, rows, parked_rows = await _find(at, service, _ALL if parked else limit + 1)
    if parked:
        halves, rows = [half for half in halves if half.parked], [row for row in rows if _key(row) in parked_rows]
    if len(halves) > limit or len(rows) > limit:
        note(f"there are more than {limit} of a kind; --limit shows more")
    halves, rows = halves[:limit], rows[:limit]
    if as_json:
        show_json([_half_fields(half) for half in halves] + [_row_fields(row, parked_rows) for row in rows])
        return
    lines: list[Sequence[object]] = [
        [
            half.id,
            "half",
            half.service,
            half.topic,
            "parked" if half.parked else f"asked {ago(half.due)}" if half.due else "",
            half.checks,
            ago(half.created),
            half.error,
        ]
        for half in halves
    ]
    lines += [
        [
            row.transaction,
            "outbox",
            None,
            row.publication.name,
            "parked" if _key(row) in parked_rows else "relayed",
            row.failures,
            ago(row.created),
            row.error,
        ]
        for row in rows
    ]
    headings = ("id", "kind", "service", "to", "state", "tries", "stored", "error")
    show_table(headings, lines, "No message waits for a transaction.", folds="error")


@commands.command()
@guarded
async def show(
    id: IdArgument,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one half, or one outbox transaction, whole."""
    async with opened(Target(app, factory, url, storage)) as at:
        waiting = await _one(at, id)
        _, _, parked_rows = await _find(at, None, 1)
    if waiting.half is not None:
        entries = [(_half_fields(waiting.half), waiting.half.body)]
    else:
        entries = [(_row_fields(row, parked_rows), row.publication.body) for row in waiting.rows]
    if as_json:
        fields = [each for each, _ in entries]
        show_json(fields[0] if waiting.half is not None else fields)
        return
    for fields, body in entries:
        for name, value in fields.items():
            if value not in ("", None) and not name.startswith("payload"):
                shown = when(float(value)) if name in {"due", "created"} else str(value)
                print(f"{name.replace('_', ' ') + ':':<14}{visible(shown)}")
        message = _message(body)
        print("\n" + visible_bytes(body if message is None else message.payload) + "\n")


@commands.command()
@guarded
async def publish(
    id: IdArgument,
    yes: YesOption = False,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish: you know that the work of a half took place, or that what parked an outbox transaction is mended."""
    async with opened(Target(app, factory, url, storage)) as at:
        waiting = await _one(at, id)
        if waiting.half is None:
            await _unpark(waiting)
            outcome = "due again: the service's relay publishes it"
        else:
            confirm(f"Publish {waiting.id} to {waiting.half.topic}, as its work took place?", yes=yes)
            await _publish_half(at, waiting.half)
            outcome = "published"
    if as_json:
        show_json({"id": waiting.id, "outcome": outcome})
    else:
        say(f"{waiting.id} is {outcome}")


@commands.command()
@guarded
async def discard(
    id: IdArgument,
    yes: YesOption = False,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Discard for good: you know that the work of a half did not and will not take place, or that a parked outbox
    transaction is not wanted."""
    async with opened(Target(app, factory, url, storage)) as at:
        waiting = await _one(at, id)
        confirm(f"Discard {waiting.id} for good? It is never published then.", yes=yes)
        if waiting.half is None:
            await _discard_rows(waiting)
        else:
            claimed = await _claim(at, waiting.half)
            if not await at.transactions.remove(claimed.id, claimed.token):
                raise _taken(claimed.id)
    if as_json:
        show_json({"id": waiting.id, "outcome": "discarded"})
    else:
        say(f"{waiting.id} is discarded")


async def _find(at: Opened, service: str | None, limit: int) -> tuple[list[Half], list[OutboxRow], set[_RowKey]]:
    """Halves, outbox rows, and the keys of those rows that are parked."""
    halves = await at.transactions.find(service, limit) if at.storages.transactions is not None else []
    rows: dict[_RowKey, OutboxRow] = {}
    parked: set[_RowKey] = set()
    for outbox in at.outboxes:
        refused = await outbox.find(service, parked=True, limit=_ALL)
        parked |= {_key(row) for row in refused}
        rows |= {_key(row): row for row in (*refused, *await outbox.find(service, limit=limit))}
    return halves, sorted(rows.values(), key=lambda row: (row.created, row.position)), parked


def _key(row: OutboxRow) -> _RowKey:
    return row.transaction, row.id


async def _one(at: Opened, id: str) -> _Waiting:
    half = await at.transactions.fetch(id) if at.storages.transactions is not None else None
    if half is not None:
        return _Waiting(half)
    for outbox in at.outboxes:
        found = await outbox.find(limit=_ALL) + await outbox.find(parked=True, limit=_ALL)
        named = {row.transaction for row in found if id in (row.transaction, row.id, row.publication.dedupe_id)}
        if len(named) == 1:
            rows_of = {row.id: row for row in found if row.transaction in named}
            return _Waiting(None, tuple(sorted(rows_of.values(), key=lambda row: row.position)), outbox)
    halves, rows, _ = await _find(at, None, _ALL)
    known = [half.id for half in halves] + [row.transaction for row in rows]
    raise Failure(f"no half or outbox transaction has the id {id}; {close_to(id, known, 'ids')}")


async def _claim(at: Opened, half: Half) -> Half:
    claimed = await at.transactions.claim(half.id, _LEASE)
    if claimed is None:
        raise _taken(half.id)
    return claimed


async def _publish_half(at: Opened, half: Half) -> None:
    claimed = await _claim(at, half)
    publisher = Publisher(at.driver)
    await publisher.prepare()
    try:
        if await publisher.publish(publication_of(claimed)) == 0:
            note(f"no queue is bound to {half.topic} for this route key: the message is kept nowhere")
    except NotDeclared:
        topics = [name for name, _ in await at.driver.topics()]
        raise Failure(f"there is no topic {half.topic!r}; {close_to(half.topic, topics, 'topics')}") from None
    if not await at.transactions.remove(claimed.id, claimed.token):
        note(
            "published; the half is another's by now: a second copy with the same id may follow, which is handled once"
        )


async def _unpark(waiting: _Waiting) -> None:
    if waiting.outbox is None or not await waiting.outbox.unpark(waiting.id):
        raise Failure(f"{waiting.id} is not parked: its service's relay publishes it while the service runs")


async def _discard_rows(waiting: _Waiting) -> None:
    outbox = waiting.outbox
    parked: set[str] = set() if outbox is None else {row.id for row in await outbox.find(parked=True, limit=_ALL)}
    if outbox is None or not all(row.id in parked for row in waiting.rows):
        raise Failure(
            f"{waiting.id} is not parked: its service's relay publishes it; only parked ones can be discarded"
        )
    if await outbox.delete([(row.id, row.token) for row in waiting.rows]) != len(waiting.rows):
        raise _taken(waiting.id)


def _taken(id: str) -> Failure:
    return Failure(f"{id} was changed by another at this moment; look again with: easybus tx show {id}")


def _message(body: bytes) -> Message | None:
    try:
        return Message.from_bytes(body)
    except EnvelopeError:
        return None


def _half_fields(half: Half) -> dict[str, Any]:
    message = _message(half.body)
    return {
        "kind": "half",
        "id": half.id,
        "service": half.service,
        "topic": half.topic,
        "checks": half.checks,
        "parked": half.parked,
        "due": half.due,
        "created": half.created,
        "error": half.error,
        "route_key": "" if message is None else message.route_key,
        **payload_fields(half.body if message is None else message.payload),
    }


def _row_fields(row: OutboxRow, parked: set[_RowKey]) -> dict[str, Any]:
    message = _message(row.publication.body)
    return {
        "kind": "outbox",
        "id": row.id,
        "transaction": row.transaction,
        "position": row.position,
        "topic" if row.publication.to_topic else "queue": row.publication.name,
        "message_id": row.publication.dedupe_id if message is None else message.id,
        "failures": row.failures,
        "parked": _key(row) in parked,
        "created": row.created,
        "error": row.error,
        "route_key": row.publication.route_key,
        **payload_fields(row.publication.body if message is None else message.payload),
    }
