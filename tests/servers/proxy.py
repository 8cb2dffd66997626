"""A TCP proxy that a test cuts, at once or after so many bytes to the server, in the middle of a frame, or silences.

It can also put other words of the same length into the server's mouth: a server that says it is an older one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from . import HOST

__all__ = ["Proxy"]


class Proxy:
    """Between a client and the server on `port`."""

    def __init__(self, port: int, *, says: tuple[bytes, bytes] | None = None) -> None:
        """`says`: a pattern of the server's words, and those of the same length that the client hears instead."""
        self._target = port
        self._says = says
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.budget: int | None = None
        """Bytes from the client that still pass before every connection is reset; None: any number."""
        self.cuts = 0
        self.speaks = asyncio.Event()
        """Cleared: it accepts, and passes nothing on."""
        self.speaks.set()
        self.round_trips = 0
        """How often a client has spoken that had had its answer, or had said nothing yet."""
        self._asking: set[asyncio.StreamReader] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        self.speaks.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there_reader, there_writer = await asyncio.open_connection(HOST, self._target)
            self._writers |= {writer, there_writer}
            await asyncio.gather(
                self._pass(reader, there_writer, client=reader), self._pass(there_reader, writer, client=reader)
            )
        except OSError:
            writer.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        client: asyncio.StreamReader,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.speaks.wait()
                if reader is not client:
                    self._asking.discard(client)
                elif client not in self._asking:
                    self._asking.add(client)
                    self.round_trips += 1
                if reader is client and self.budget is not None:
                    data = data[: self.budget]
                    self.budget -= len(data)
                    writer.write(data)
                    if not self.budget:
                        await writer.drain()
                        await asyncio.sleep(0.02)  # what passed is to reach the server
                        self.budget = None
                        self.cuts += 1
                        self.cut()
                        return
                    continue
                if self._says is not None and reader is not client:
                    heard = re.sub(*self._says, data)
                    assert len(heard) == len(data)
                    data = heard
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
