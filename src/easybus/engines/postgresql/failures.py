"""The client library's errors as ours: by the class of the server's SQLSTATE, or by where they come from.

A call that failed for reasons unknown may be tried again: only what the server surely refuses for good is `Refused`.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from ...errors import ConfigurationError, EasybusError, Refused, Unavailable
from ..certificates import untrusted
from ..unreached import unreached

REFUSED = {
    # class or code: what to do about it
    "22": "the server cannot hold this value",
    "23": "the database's own constraints refuse it",
    "54": "it is over one of the server's limits",
    "42501": "the role lacks a privilege: GRANT it on the bus's schema, its tables and its sequences",
}
MISCONFIGURED = {
    # what only a first connection may say; later the server may be in the middle of being set up again
    "28": "the server refuses this user or password; mend the URL (special characters as %XX), or pg_hba.conf",
    "3D000": "there is no such database: createdb it, or mend the URL",
    "42704": "the server does not know an option of the URL",
}
PASSES = {
    # what may be tried again, and is better mended
    "53100": "the server's disk is full: free some; then it goes on by itself",
    "53200": "the server is out of memory: give it more, or its queries less (work_mem)",
    "53300": "the server has no connection left: raise max_connections, or lower connections= in the URL",
    "25006": "the server takes no writes: name the primary, or several hosts, in the URL",
}
AGAIN = ("40001", "40P01")
"""Serialization failure, deadlock: the same call, made again, may succeed at once."""
_WIPED = ("42P01", "3F000")
"""No such table or schema: it was there when the engine was opened."""


def translated(error: BaseException, url: str, *, first: bool = False) -> EasybusError:
    """Our error for theirs. `first`: while opening, when what is misconfigured is said as such."""
    if isinstance(error, EasybusError):
        return error
    code: str = getattr(error, "sqlstate", None) or ""
    if first:
        if (why := untrusted(error, "sslrootcert")) is not None:
            return ConfigurationError(f"{url}: {why}")
        for known, advice in MISCONFIGURED.items():
            if code.startswith(known):
                return ConfigurationError(f"{url}: {_text(error)}: {advice}")
        if isinstance(error, _CLIENT_CONFIGURATION):
            return ConfigurationError(f"{url}: {type(error).__name__}: the client library refuses its settings")
    if isinstance(error, ValueError):  # the client library cannot even send it
        return Refused(f"{url}: {_text(error)}")
    for known, advice in REFUSED.items():
        if code.startswith(known):
            return Refused(f"{url}: {_text(error)}: {advice}")
    advice = f": {PASSES[code]}" if code in PASSES else unreached(error)
    return Unavailable(f"{url}: {_text(error)}{advice}")


def is_foreign(error: BaseException) -> bool:
    """Whether it is of the client library or the network."""
    return isinstance(error, (asyncpg.PostgresError, *_BROKEN))


def breaks(error: BaseException) -> bool:
    """Whether its connection cannot be used any more: what the server itself says breaks none."""
    return isinstance(error, _BROKEN) and not isinstance(error, ValueError)


def refuses_commit(error: BaseException) -> bool:
    """Whether the server has surely rolled a transaction back instead of committing it: by a rule of the data's, such
    as a deferred constraint, or for another transaction's sake."""
    return (getattr(error, "sqlstate", None) or "").startswith(("23", "40", "P0"))


def wiped(error: BaseException) -> bool:
    """Whether the tables are gone."""
    return getattr(error, "sqlstate", None) in _WIPED


_named: Any = asyncpg.exceptions
_BROKEN: tuple[type[BaseException], ...] = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the library's own state, after a connection was lost in the middle of a call
    OSError,
    EOFError,
)
_CLIENT_CONFIGURATION: tuple[type[BaseException], ...] = (_named.ClientConfigurationError, ValueError)


def _text(error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
