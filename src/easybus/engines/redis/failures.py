"""The client's errors as ours: `Unavailable` where trying again may help, `Refused` where it does not."""

from __future__ import annotations

import redis.exceptions as client

from ...errors import EngineError, Refused, Unavailable
from ..certificates import untrusted
from ..unreached import unreached

_RIGHTS = "the user lacks rights: with ACL SETUSER, allow its keys, its channels and +@all -@admin -@dangerous +info"
_LOGIN = "the user or the password is wrong, or missing: mend the URL (special characters as %XX)"
_FULL = "it is full: raise maxmemory, or let the consumers catch up"
CAUGHT = (client.RedisError, OSError, UnicodeEncodeError)
"""What a call through the client raises."""

_BY_TYPE: tuple[tuple[type[BaseException], type[EngineError], str], ...] = (
    # The first that fits; subclasses before their bases.
    (client.NoPermissionError, Refused, _RIGHTS),
    (client.AuthenticationError, Refused, _LOGIN),
    (client.AuthorizationError, Refused, "the user may not do this"),
    (client.OutOfMemoryError, Unavailable, _FULL),
    (client.ReadOnlyError, Unavailable, "it is a replica now; the master is elsewhere"),
    (client.ConnectionError, Unavailable, "it cannot be reached"),
    (client.TimeoutError, Unavailable, "it does not answer in time"),
    (OSError, Unavailable, "it cannot be reached"),
)
_BY_CODE: tuple[tuple[str, type[EngineError], str], ...] = (
    ("WRONGTYPE", Refused, "another program's data lies under a key of ours: choose another ?prefix="),
    ("OOM", Unavailable, _FULL),
    ("NOAUTH", Refused, _LOGIN),
    ("NOPERM", Refused, _RIGHTS),
    ("ERR ACL failure in script", Refused, _RIGHTS),
    ("READONLY", Unavailable, "it is a replica now; the master is elsewhere"),
    ("MISCONF", Unavailable, "it cannot write to its disk, and takes nothing until it can: free some"),
    ("BUSY ", Unavailable, "a script holds it up"),
    ("LOADING", Unavailable, "it is loading its data"),
    ("MASTERDOWN", Unavailable, "its master is away"),
    ("NOREPLICAS", Unavailable, "too few replicas are connected"),
    ("TRYAGAIN", Unavailable, "its slots are moving"),
    ("CLUSTERDOWN", Unavailable, "its cluster is down"),
    ("UNBLOCKED", Unavailable, "its role has changed"),
)


def translated(error: BaseException, where: str) -> EngineError:
    """The error to raise, from `error`."""
    if (why := untrusted(error, "ca")) is not None:
        return Refused(f"{where}: {why}")
    for kind, ours, says in _BY_TYPE:
        if isinstance(error, kind):
            return ours(f"{where}: {says} ({error}){unreached(error)}")
    return refused(str(error), where)


def refused(text: str, where: str) -> EngineError:
    """The error for what the server said."""
    for code, ours, says in _BY_CODE:
        if text.startswith(code):
            return ours(f"{where}: {says} ({text})")
    return Refused(f"{where}: {text}")
