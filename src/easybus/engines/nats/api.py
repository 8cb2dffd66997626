"""The server's JetStream API: streams, consumers, and the time that it tells."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import msgspec

from ...errors import ConfigurationError, Unavailable
from .failures import LEADERLESS, JetStreamError, refused
from .link import Link
from .wire import status

__all__ = ["Api"]


class Off(Unavailable):
    """The server has no JetStream now."""


SCHEDULES = (2, 12)
"""The server's version from which it delivers at a time."""
_FIRST_PATIENCE = 0.5
_LONGEST_PATIENCE = 2.0
"""Seconds after which a request is made again. A cluster leaves some without an answer: while a leader is elected, and
where the answer comes from another server than the one that was asked, before that has told of our inbox."""
_PAUSE = 0.1
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Api:
    """Requests to the server. Each raises `Unavailable` without an answer, and `JetStreamError` for a refusal."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._at = 0.0
        self._span = (0.0, 0.0)

    async def request(self, subject: str, content: Any = None, *, slow: bool = False) -> dict[str, Any]:
        """One request's answer. It may be made several times. `slow`: servers must agree first, so it may take three
        times as long as other calls."""
        loop = asyncio.get_running_loop()
        call = (f"$JS.API.{subject}", b"" if content is None else _encode(content), None)
        end = loop.time() + self.link.address.timeout * (3 if slow else 1)
        patience = _FIRST_PATIENCE
        while True:
            began = loop.time()
            [answer] = await self.link.ask([call], min(patience, end - began))
            late = loop.time() + _PAUSE >= end
            if answer is not None:
                if status(answer) == "503":
                    raise self._off()
                said: dict[str, Any] = _decode(answer.data)
                if "error" not in said:
                    break
                error = JetStreamError(said["error"])
                if late or error.code not in LEADERLESS:
                    raise error
            elif late:
                raise self.link.silent(subject)
            await asyncio.sleep(max(0.0, _PAUSE - loop.time() + began))
            patience = min(patience * 2, _LONGEST_PATIENCE)
        if "state" in said:  # a stream's; servers before 2.10 do not tell the time
            self._at = loop.time()
            moment = datetime.fromisoformat(said["ts"]).timestamp() if "ts" in said else time.time()
            self._span = (moment - self._at, moment - began)
        return said

    async def check(self) -> None:
        """Whether the server has JetStream. Raises `ConfigurationError`, `Unavailable`."""
        try:
            await self.request("INFO", slow=True)
        except Off as error:
            if self.link.wire.info.get("jetstream"):
                raise
            raise ConfigurationError(str(error)) from None
        except JetStreamError as error:
            if error.code in (10039, 10076):
                raise ConfigurationError(
                    f"{self.link.address.url}: {error}: enable JetStream for the account"
                ) from None
            raise refused(error, self.link.address.url) from error

    def _off(self) -> Off:
        if self.link.wire.info.get("jetstream"):  # it is only starting, or without a leader
            return Off(f"{self.link.address.url}: JetStream does not answer yet")
        return Off(
            f"{self.link.address.url}: JetStream is off: start the server with -js, or with a jetstream block in its "
            "configuration"
        )

    @property
    def schedules(self) -> bool:
        """Whether the server is new enough to deliver at a time."""
        return _version(self.version) >= SCHEDULES

    @property
    def version(self) -> str:
        """The server's."""
        return str(self.link.wire.info.get("version", "0"))

    # ------------------------------------------------------------------------------------------ the server's time

    def latest(self) -> float:
        """The server's time, in seconds since 1970, as late as it can be now."""
        return asyncio.get_running_loop().time() + self._span[1]

    async def earliest(self, stream: str) -> float:
        """The server's time, as early as it can be now; asked for where what is known is older than 10 seconds."""
        if asyncio.get_running_loop().time() - self._at > 10.0:
            await self.stream_info(stream)
        return asyncio.get_running_loop().time() + self._span[0]

    # ------------------------------------------------------------------------------------------------- requests

    async def stream_info(self, stream: str) -> dict[str, Any]:
        return await self.request(f"STREAM.INFO.{stream}")

    async def consumer_info(self, stream: str, consumer: str) -> dict[str, Any]:
        return await self.request(f"CONSUMER.INFO.{stream}.{consumer}")


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major) if major.isdecimal() else 0, int(minor) if minor.isdecimal() else 0)
