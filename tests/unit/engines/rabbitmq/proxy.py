"""A small TCP proxy that cuts its connections when so many bytes have gone to the server."""

from __future__ import annotations

import asyncio
import contextlib

HOST = "127.0.0.1"


class Proxy:
    """Between a client and the server on `port`; `cut_after` bytes to the server both sides are dropped at once."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.cut_after: int | None = None
        self.cuts = 0
        self._server_port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for end in self._ends:
            end.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there, server = await asyncio.open_connection(HOST, self._server_port)
        self._ends |= {writer, server}
        back = asyncio.create_task(self._copy(there, writer, counted=False))
        try:
            await self._copy(reader, server, counted=True)
        finally:
            for end in (writer, server):
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            await back
            self._ends -= {writer, server}

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if counted and self.cut_after is not None:
                    if len(data) > self.cut_after:
                        sink.write(data[: self.cut_after])
                        await sink.drain()
                        self.cut_after = None
                        self.cuts += 1
                        return
                    self.cut_after -= len(data)
                sink.write(data)
                await sink.drain()
            sink.write_eof()
