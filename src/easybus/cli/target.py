"""Which engines a command speaks to: an app's, or those of URLs.

They are opened without the bus, so nothing is relayed or handled.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import unquote, urlsplit

import typer

from ..clock import SystemClock
from ..engines.contract import DeadLetterStorage, Driver, Engine, OutboxStorage, TransactionStorage
from ..engines.registry import create
from ..errors import NotDeclared, NotSupported
from ..shown import hide
from .loading import load_bus
from .output import Failure, Misused, close_to, note

S = TypeVar("S")

AppArgument = Annotated[
    str | None, typer.Argument(metavar="APP", envvar="EASYBUS_APP", help="The bus, as module:bus.", show_default=False)
]
AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="APP", help="The bus, as module:bus. Else EASYBUS_APP.", show_default=False),
]
FactoryOption = Annotated[bool, typer.Option("--factory", help="APP is a function that returns the bus.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The engine, instead of an app. Else EASYBUS_URL, which no process list shows.",
        show_default=False,
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", metavar="URL", help="Where storages are, if not at --url.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LogJsonOption = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Target:
    """What the command line was told of where to look."""

    app: str | None = None
    factory: bool = False
    url: str | None = None
    storage: str | None = None

    def urls(self) -> tuple[str, str, tuple[str, ...]]:
        """The URLs of the engine, of the storages, and of further databases whose outbox the app relays.

        Raises:
            Misused: neither an app nor a URL is given.
        """
        if self.app and self.url:
            raise Misused("give --app or --url, not both")
        app = self.app or (None if self.url else os.environ.get("EASYBUS_APP"))
        if app:
            bus = load_bus(app, factory=self.factory)
            return bus.url, self.storage or bus.storage_url or bus.url, bus.databases
        url = self.url or os.environ.get("EASYBUS_URL")
        if not url:
            raise Misused("where? Give --url, such as --url sqlite:///shop.db, or --app module:bus, or set EASYBUS_URL")
        return url, self.storage or url, ()


@dataclass(frozen=True)
class Opened:
    """The open engines of a target."""

    engine: Engine
    storages: Engine
    databases: tuple[Engine, ...] = ()

    @property
    def driver(self) -> Driver:
        """Raises `NotSupported`: the URL is a storage's."""
        if self.engine.driver is None:
            raise NotSupported(f"{self.engine.url} holds no queues, only storages")
        return self.engine.driver

    @property
    def dead_letters(self) -> DeadLetterStorage:
        """Raises `NotSupported`: nothing here keeps dead letters."""
        return self._storage(self.storages.dead_letters, "dead letters")

    @property
    def transactions(self) -> TransactionStorage:
        """Raises `NotSupported`: nothing here keeps halves."""
        return self._storage(self.storages.transactions, "transactions")

    @property
    def outboxes(self) -> list[OutboxStorage]:
        """Those of the storages' engine and of the app's further databases, as far as they are databases."""
        return [engine.outbox for engine in (self.storages, *self.databases) if engine.outbox is not None]

    def _storage(self, storage: S | None, what: str) -> S:
        if storage is None:
            raise NotSupported(f"{self.storages.url} keeps no {what}; add --storage with the URL that the bus is given")
        return storage

    async def queue_names(self) -> list[str]:
        """The queues there are; none where the engine cannot list them."""
        try:
            return [queue.name for queue in await self.driver.queues()]
        except NotSupported:
            return []

    async def no_queue(self, name: str) -> NotDeclared:
        """The error for a queue that is not there: it says which are."""
        return NotDeclared(f"there is no queue {name!r}; {close_to(name, await self.queue_names(), 'queues')}")


@asynccontextmanager
async def opened(target: Target, *, create_file: bool = False) -> AsyncGenerator[Opened, None]:
    """The target's engines, open; closed at the end."""
    url, storage_url, more = target.urls()
    for each in (url, storage_url, *more):
        hide(each)
    async with AsyncExitStack() as stack:
        engine = await _open(url, stack, create_file=create_file)
        storages = engine if storage_url == url else await _open(storage_url, stack, create_file=create_file)
        databases = [await _open(each, stack, create_file=create_file) for each in more if each != storage_url]
        if engine.driver is not None and not engine.driver.caps.shared:
            note(f"{engine.url} lives in one process: what others have in theirs cannot be seen from here")
        yield Opened(engine, storages, tuple(databases))


async def _open(url: str, stack: AsyncExitStack, *, create_file: bool) -> Engine:
    engine = create(url, SystemClock())
    if not create_file:
        _refuse_missing_file(url)
    await engine.open()
    stack.push_async_callback(engine.close)
    return engine


def _refuse_missing_file(url: str) -> None:
    """A mistyped file would be made, empty, and look like a bus with nothing in it."""
    parts = urlsplit(url)
    if parts.netloc or len(parts.path) < 2:
        return  # a server's, or no file at all
    path = Path(unquote(parts.path[1:]))
    if not path.exists():
        beside = [found.name for found in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        raise Failure(f"there is no file {path} ({path.absolute()}); {close_to(path.name, beside, 'files')}")
