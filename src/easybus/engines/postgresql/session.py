"""What exists while the engine is open: its connections, what is declared, who waits, and the database's identity."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from ...errors import EngineError, NotOpen
from . import schema
from .completion import OR_FAIL
from .connections import Connection, Connections, check_server, connect
from .failures import is_foreign, translated
from .guest import Guest
from .location import Location
from .topology import Topology
from .waking import Waker

_log = logging.getLogger("easybus")


class Session:
    """One engine's session; opened and closed any number of times, each time on one event loop."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.names = location.names
        self.or_fail = {self.names(one): self.names(other) for one, other in OR_FAIL.items()}
        """For each last statement of a handler's transaction, the one that fails where it would change no row."""
        self.topology = Topology(location.names)
        self._connections: Connections | None = None
        self._guests: Connections | None = None
        self._waker: Waker | None = None
        self._identity = ""
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def connections(self) -> Connections:
        """The bus's own connections. Raises `NotOpen`."""
        return self._connections or self._not_open()

    @property
    def guests(self) -> Connections:
        """Connections for handlers' transactions. Raises `NotOpen`."""
        return self._guests or self._not_open()

    @property
    def waker(self) -> Waker:
        """Who waits for what. Raises `NotOpen`."""
        return self._waker or self._not_open()

    @property
    def identity(self) -> tuple[str, str]:
        """A statement, and what it returns in this very schema only. Raises `NotOpen`."""
        if self._connections is None:
            self._not_open()
        return self.names(schema.IDENTITY), self._identity

    async def open(self) -> None:
        """Connect, and make the tables. Raises `Unavailable`, `Refused`, `ConfigurationError`."""
        if self._connections is not None:
            return
        location = self.location
        connection = await connect(location, first=True)
        try:
            async with asyncio.timeout(max(60.0, location.timeout)):  # tables may be made, after twenty others looked
                await check_server(connection, location.url)
                await self._prepare(connection)
        except Exception as error:
            connection.terminate()
            if isinstance(error, TimeoutError) or is_foreign(error):
                raise translated(error, location.url, first=True) from error
            raise
        except BaseException:
            connection.terminate()
            raise
        self.topology.forget()
        self._connections = Connections(location, location.connections)
        self._connections.prepare = self._prepare
        self._connections.adopt(connection)
        self._guests = Connections(location, location.transactions, guest=Guest)
        self._waker = Waker(location)

    async def _prepare(self, connection: Connection) -> None:
        await schema.prepare(connection, self.names, self.location.url)
        self._identity = await connection.fetchval(self.names(schema.IDENTITY))
        self.topology.forget()

    async def close(self) -> None:
        """Disconnect; whoever waits is woken, and finds it closed."""
        connections, guests, waker = self._connections, self._guests, self._waker
        if connections is None or guests is None or waker is None:
            return
        # What cancelled callers had taken is on its way back: let it arrive.
        await asyncio.wait({asyncio.create_task(self._settled(connections))}, timeout=2.0)
        self._connections = self._guests = None
        await waker.close()
        self._waker = None
        await asyncio.gather(connections.close(), guests.close())

    async def _settled(self, connections: Connections) -> None:
        while busy := connections.busy | self._background:
            await asyncio.wait(busy, timeout=2.0)

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do this in the background; if it fails, a lease ends instead."""

        async def run() -> None:
            with contextlib.suppress(EngineError, NotOpen):
                await work

        task = asyncio.get_running_loop().create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _not_open(self) -> Any:
        raise NotOpen(f"{self.location.url} is not open; write: async with bus: …")
