"""Dead letters: look, mend, replay, remove.

A letter is addressed by its message id, or by its key where an id names several; --queue tells queues apart.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from ..engines.contract import DeadLetter, DeadLetterStorage
from ..errors import EnvelopeError
from ..message import Message
from ..shown import visible, visible_bytes
from .editing import mended, new_payload
from .output import (
    Failure,
    Misused,
    ago,
    close_to,
    confirm,
    counted,
    duration,
    guarded,
    note,
    payload_fields,
    say,
    show_json,
    show_table,
    when,
)
from .target import AppOption, FactoryOption, JsonOption, StorageOption, Target, UrlOption, YesOption, opened

commands = typer.Typer(name="dead", help="Dead letters: messages that could not be handled.", no_args_is_help=True)

QueueOption = Annotated[str | None, typer.Option("--queue", "-q", help="Only of this queue.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only where the reason or error type holds this.")]
OlderOption = Annotated[str | None, typer.Option("--older", metavar="TIME", help="Only failed longer ago: 30m, 2h.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The message's id, or the letter's key.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Message ids, or letters' keys.", show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter (of --queue, if that is given).")]


@commands.command("list")
@guarded
async def list_(
    queue: QueueOption = None,
    reason: ReasonOption = None,
    older: OlderOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 100,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show dead letters, oldest failure first."""
    before = None if older is None else time.time() - duration(older)
    async with opened(Target(app, factory, url, storage)) as at:
        letters = await at.dead_letters.find(queue, reason=reason, before=before, limit=limit + 1)
        if queue is not None and not letters:
            known = {*await at.dead_letters.count(), *(await at.queue_names() if at.engine.driver else [])}
            if queue not in known:
                raise await at.no_queue(queue)
    if len(letters) > limit:
        note(f"there are more than these {limit}; --limit shows more")
    letters = letters[:limit]
    if as_json:
        show_json([_fields(letter) for letter in letters])
        return
    ids = [letter.message_id for letter in letters]
    rows = [
        [
            letter.message_id if letter.message_id and ids.count(letter.message_id) == 1 else letter.key,
            letter.queue,
            letter.reason,
            letter.attempts,
            ago(letter.last_failed),
            "marked" if letter.marked else "",
        ]
        for letter in letters
    ]
    show_table(("id", "queue", "reason", "tries", "failed", ""), rows, "There are no dead letters.", folds="reason")


@commands.command()
@guarded
async def show(
    id: IdArgument,
    queue: QueueOption = None,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter whole: why it failed, its payload, its history."""
    async with opened(Target(app, factory, url, storage)) as at:
        letter = await _one(at.dead_letters, id, queue)
    if as_json:
        show_json(_fields(letter))
        return
    for name, value in _facts(letter):
        if value:
            print(f"{name + ':':<14}{visible(value)}")
    for event in letter.history:
        what = {key: value for key, value in event.items() if key not in {"at", "what"}}
        say(f"{when(float(event.get('at', 0)))}: {event.get('what', '')}{f' {what}' if what else ''}")
    if letter.traceback:
        print("\n" + visible_bytes(letter.traceback.rstrip().encode("utf-8", "backslashreplace")))
    message = _message(letter)
    print("\n" + visible_bytes(letter.body if message is None else message.payload))


@commands.command()
@guarded
async def edit(
    id: IdArgument,
    queue: QueueOption = None,
    payload: Annotated[str | None, typer.Option("--payload", help="The new payload, as it is to be.")] = None,
    file: Annotated[str | None, typer.Option("--file", metavar="FILE", help="Read the new payload from here.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take a payload that is no JSON where it was JSON.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Mark it for retry, too.")] = False,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mend a dead letter's payload: in $EDITOR, or with --payload or --file.

    The mended letter gets a new message id, and the header `mended-from` with the old one.
    """
    if payload is not None and file is not None:
        raise Misused("give --payload or --file, not both")
    async with opened(Target(app, factory, url, storage)) as at:
        letter = await _one(at.dead_letters, id, queue)
        message = _message(letter)
        old = letter.body if message is None else message.payload
        new = new_payload(old, payload=payload, file=file, raw=raw)
        if new == old:
            raise Failure("the payload is as it was; nothing was changed")
        replacement = mended(message, new)
        key = await at.dead_letters.edit(letter.queue, letter.key, replacement.to_bytes())
        if key is None:
            raise Failure(f"{id} is no longer among the dead letters of {letter.queue}; nothing was changed")
        marked = await at.dead_letters.mark_for_retry(letter.queue, [key]) if retry else 0
    if as_json:
        show_json({"queue": letter.queue, "id": replacement.id, "key": key, "marked": bool(marked)})
    else:
        say(f"mended: it is {replacement.id} now{', marked for retry' if marked else ''}")


@commands.command()
@guarded
async def retry(
    ids: IdsArgument = None,
    queue: QueueOption = None,
    reason: ReasonOption = None,
    older: OlderOption = None,
    every: AllOption = False,
    yes: YesOption = False,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mark dead letters for retry: the handlers of their queues replay them.

    Name them, or select them with --queue, --reason and --older; --all takes every one, and asks.
    """
    async with opened(Target(app, factory, url, storage)) as at:
        letters = await _selected(at.dead_letters, ids, queue, reason, older, every)
        if every and letters:
            confirm(f"Mark {counted(len(letters), 'dead letter')} for retry?", yes=yes)
        marked = 0
        for name, keys in _keys(letters).items():
            marked += await at.dead_letters.mark_for_retry(name, keys)
    if as_json:
        show_json({"marked": marked})
    else:
        say(f"marked {marked} for retry" if marked else "There are no such dead letters.")


@commands.command()
@guarded
async def delete(
    ids: IdsArgument = None,
    queue: QueueOption = None,
    reason: ReasonOption = None,
    older: OlderOption = None,
    every: AllOption = False,
    yes: YesOption = False,
    app: AppOption = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete dead letters for good. Asks, unless they are named by id.

    Name them, or select them with --queue, --reason and --older, or --all.
    """
    async with opened(Target(app, factory, url, storage)) as at:
        letters = await _selected(at.dead_letters, ids, queue, reason, older, every)
        if not ids and letters:
            confirm(f"Delete {counted(len(letters), 'dead letter')} for good?", yes=yes)
        deleted = 0
        for name, keys in _keys(letters).items():
            deleted += await at.dead_letters.delete(name, keys)
    if as_json:
        show_json({"deleted": deleted})
    else:
        say(f"deleted {deleted}" if deleted else "There are no such dead letters.")


async def _one(storage: DeadLetterStorage, id: str, queue: str | None) -> DeadLetter:
    """The letter of this id or key.

    Raises:
        Failure: there is none, or several; the text says what to write instead.
    """
    queues = [queue] if queue is not None else sorted(await storage.count())
    found = [letter for name in queues if (letter := await storage.get(name, id)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise Failure(f"{id} is in several queues; add --queue {' or --queue '.join(one.queue for one in found)}")
    letters = await storage.find(queue, limit=1000)
    same = [letter.key for letter in letters if letter.message_id == id]
    if same:
        raise Failure(f"the id {id} names {len(same)} letters; name one by its key: {', '.join(same)}")
    known = [letter.message_id or letter.key for letter in letters]
    where = f" of queue {queue!r}" if queue is not None else ""
    raise Failure(f"no dead letter{where} has the id {id}; {close_to(id, known, 'dead letters')}")


async def _selected(
    storage: DeadLetterStorage,
    ids: list[str] | None,
    queue: str | None,
    reason: str | None,
    older: str | None,
    every: bool,
) -> list[DeadLetter]:
    filtered = reason is not None or older is not None
    if ids:
        if every or filtered:
            raise Misused("name letters by id, or select them with --reason, --older or --all, not both")
        return [await _one(storage, id, queue) for id in dict.fromkeys(ids)]  # noqa: A001
    if every and filtered:
        raise Misused("--all takes every letter (of --queue, if that is given); leave --reason and --older out")
    if not every and not filtered and queue is None:
        raise Misused("which? Name letters by id, or select them with --queue, --reason, --older or --all")
    before = None if older is None else time.time() - duration(older)
    counts = await storage.count()
    if queue is not None and queue not in counts:
        raise Failure(f"queue {queue!r} has no dead letters; {close_to(queue, counts, 'queues with dead letters')}")
    return await storage.find(queue, reason=reason, before=before, limit=max(1, sum(counts.values())))


def _keys(letters: list[DeadLetter]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for letter in letters:
        keys.setdefault(letter.queue, []).append(letter.key)
    return keys


def _message(letter: DeadLetter) -> Message | None:
    """The message in the letter; None: its bytes are none."""
    try:
        return Message.from_bytes(letter.body)
    except EnvelopeError:
        return None


def _facts(letter: DeadLetter) -> list[tuple[str, str]]:
    message = _message(letter)
    facts = [
        ("id", letter.message_id),
        ("key", letter.key),
        ("queue", letter.queue),
        ("reason", letter.reason),
        ("error", f"{letter.error_type}: {letter.error}".strip(": ")),
        ("attempts", str(letter.attempts)),
        ("first failed", when(letter.first_failed)),
        ("last failed", when(letter.last_failed)),
        ("marked", "for retry" if letter.marked else ""),
    ]
    if message is None:
        return [*facts, ("bytes", "no message; shown as they are")]
    headers = [(f"header {name}", value) for name, value in message.headers.items()]
    return [*facts, ("route key", message.route_key), *headers]


def _fields(letter: DeadLetter) -> dict[str, Any]:
    message = _message(letter)
    fields: dict[str, Any] = {
        "queue": letter.queue,
        "id": letter.message_id,
        "key": letter.key,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "traceback": letter.traceback,
        "attempts": letter.attempts,
        "first_failed": letter.first_failed,
        "last_failed": letter.last_failed,
        "marked": letter.marked,
        "history": letter.history,
        "message": message is not None,
    }
    if message is not None:
        fields |= {"route_key": message.route_key, "headers": message.headers}
    return fields | payload_fields(letter.body if message is None else message.payload)
