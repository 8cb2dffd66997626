"""`easybus send` and `declare`: what needs the app's own topics and types."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PayloadError
from ..message import TYPE, Message
from ..topic import Queue, Topic
from .loading import load_bus
from .output import Failure, Misused, close_to, duration, guarded, say, show_json
from .target import AppArgument, FactoryOption, JsonOption

if TYPE_CHECKING:
    from ..bus import Bus

_USAGE = "write easybus send APP TOPIC JSON (or queue:NAME; APP may be in EASYBUS_APP instead)"


@guarded
async def send(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[APP] TOPIC|queue:NAME JSON",
            help="Where to, and the payload; - reads it from stdin.",
            show_default=False,
        ),
    ],
    factory: FactoryOption = False,
    route_key: Annotated[str, typer.Option("--route-key", "-k", help="What bindings match against.")] = "",
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="TIME", help="How long until it may be seen: 30s, 2h.")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="The message's id; else a new one.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="A header; may be given again.")
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="The payload's type, where the topic has several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send one message to a topic, or to a queue as queue:NAME.

    The payload is checked against the app's types first.
    """
    app, to, text = _words(words)
    headers = _headers(header)
    seconds = None if delay is None else duration(delay)
    bus = load_bus(app, factory=factory)
    contract = _contract(bus, to)
    value = _value(contract, sys.stdin.buffer.read() if text == "-" else text.encode(), type)
    async with bus:
        message = await bus.send(contract, value, route_key=route_key, delay=seconds, id=id, headers=headers)
    if as_json:
        show_json({"id": message.id, "to": to, "route_key": message.route_key, "headers": message.headers})
    else:
        say(f"sent {message.id} to {to}")


def _words(words: list[str]) -> tuple[str, str, str]:
    if len(words) == 2:
        words = [os.environ.get("EASYBUS_APP", ""), *words]
    if len(words) != 3:
        raise Misused(f"{len(words)} words; {_USAGE}")
    if not words[0]:
        raise Misused(f"no app; {_USAGE}")
    return words[0], words[1], words[2]


def _headers(given: list[str] | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Misused(f"--header {text!r}; write it as name=value")
        headers[name] = value
    return headers


def _contract(bus: Bus, to: str) -> Topic[Any] | Queue[Any]:
    """The app's topic or queue.

    Raises:
        Failure: it has none of this name.
    """
    kind, name = ("queue", to.removeprefix("queue:")) if to.startswith("queue:") else ("topic", to)
    found = bus.targets.get((kind, name))
    if found is None:
        other = "topic" if kind == "queue" else "queue"
        if (other, name) in bus.targets:
            right = name if other == "topic" else f"queue:{name}"
            raise Failure(f"the app has no {kind} {name!r}, but a {other} of that name: write {right}")
        known = [name if kind == "topic" else f"queue:{name}" for kind, name in bus.targets]
        raise Failure(f"the app has no {kind} {name!r}; {close_to(to, known, 'topics and queues')}")
    return found


def _value(contract: Topic[Any] | Queue[Any], data: bytes, type: str | None) -> Any:
    """The payload as a value of the contract's types, so that a wrong one is found before anything is sent."""
    try:
        return contract.payloads.decode(Message(payload=data, headers={} if type is None else {TYPE: type}))[1]
    except PayloadError as error:
        if type is None and len(contract.payloads.types) > 1:
            names = ", ".join(getattr(one, "__name__", str(one)) for one in contract.payloads.types)
            raise Misused(f"{contract!r} has several types; say which with --type: {names}") from None
        raise Failure(str(error)) from None


@guarded
async def declare(app: AppArgument = None, factory: FactoryOption = False, as_json: JsonOption = False) -> None:
    """Create the app's topics, queues and bindings, and its storages' tables; what exists stays as it is.

    Run it before the first deploy, and it is harmless ever after.
    """
    bus = load_bus(app, factory=factory)
    async with bus:
        pass
    topics = sorted(name for kind, name in bus.targets if kind == "topic")
    queues = sorted({name for kind, name in bus.targets if kind == "queue"} | {each.queue for each in bus.handlers})
    if as_json:
        show_json({"topics": topics, "queues": queues})
    else:
        say(f"topics: {', '.join(topics) or 'none'}")
        say(f"queues: {', '.join(queues) or 'none'}")
