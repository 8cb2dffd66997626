"""A server that cannot be reached: what to do about it."""

from __future__ import annotations

import errno
import socket

__all__ = ["unreached"]

_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)


def unreached(error: BaseException | None) -> str:
    """A sentence to end an error's text with, where `error`, or what caused it, says why nobody was reached; else
    nothing."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, socket.gaierror):
            return ": no such host is known: mend the host in the URL, or the name service"
        if isinstance(error, ConnectionRefusedError):
            return ": nothing listens there: start the server, or mend host and port in the URL"
        if isinstance(error, OSError) and error.errno in _NO_WAY:
            return ": no way leads there: mend the host in the URL, or the network"
        error = error.__cause__ or error.__context__
    return ""
