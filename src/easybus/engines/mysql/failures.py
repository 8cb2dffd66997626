"""The client library's errors as ours: by the server's number for it, or by where they come from.

A call that failed for reasons unknown may be tried again: only what the server surely refuses for good is `Refused`.
"""

from __future__ import annotations

from typing import Any

from asyncmy import errors as theirs

from ...errors import ConfigurationError, EasybusError, Refused, TooLarge, Unavailable
from ..certificates import untrusted
from ..unreached import unreached

_named: Any = theirs

_ACCESS = "the server refuses this user or password; mend the URL (special characters as %XX), or GRANT access"
_PRIVILEGE = "the user lacks a privilege: GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX on the database"
_STATEMENTS = "the server logs statements (binlog_format=STATEMENT), which allows no READ COMMITTED: set MIXED or ROW"
MISCONFIGURED = {
    # what only a first connection may say; later the server may be in the middle of being set up again
    1045: _ACCESS,
    1698: _ACCESS,
    1251: _ACCESS,
    2059: "the user's authentication plugin is none that asyncmy knows",
    1044: _PRIVILEGE,
    1049: "there is no such database: CREATE DATABASE it, or mend the URL",
    1142: _PRIVILEGE,
    1143: _PRIVILEGE,
    1227: _PRIVILEGE,
    1665: _STATEMENTS,
    3159: "the server takes encrypted connections only: write ssl_mode=required in the URL",
}
REFUSED = {
    1142: _PRIVILEGE,
    1143: _PRIVILEGE,
    1665: _STATEMENTS,
    1264: "the server cannot hold this value",
    1366: "the server cannot hold this value",
    1406: "the server cannot hold this value",
    1048: "the database's own constraints refuse it",
}
TOO_LARGE = (1153, 1118, 1301, 1534)
"""A packet or a row over one of the server's limits."""
_DISK = "the server's disk, or the space that it was given, is full: free some; then it goes on by itself"
PASSES = {
    # what may be tried again, and is better mended
    1021: _DISK,
    1114: _DISK,
    1041: "the server is out of memory: give it more",
    1040: "the server has no connection left: raise max_connections, or lower connections= in the URL",
    1203: "the user has no connection left: raise max_user_connections, or lower connections= in the URL",
    1290: "the server takes no writes: name the primary, or several hosts, in the URL",
}
LOCK_WAIT = 1205
AGAIN = (LOCK_WAIT, 1213, 1062, 1020)
"""A lock waited for in vain, a deadlock, a row that another has just added or changed: the same call, made again, may
succeed at once."""
STALE = 1048
"""What the publishing statement is refused with where bindings have changed (see `driver`)."""
SHORT = 1242
"""What a transaction is broken off with where not all keys are held that it was to change (see `keys`)."""
_WIPED = (1146,)
"""No such table: it was there when the engine was opened."""


def translated(error: BaseException, url: str, *, first: bool = False) -> EasybusError:
    """Our error for theirs. `first`: while opening, when what is misconfigured is said as such."""
    if isinstance(error, EasybusError):
        return error
    number = code(error)
    if first and (why := untrusted(error, "ssl_ca")) is not None:
        return ConfigurationError(f"{url}: {why}")
    if first and number in MISCONFIGURED:
        return ConfigurationError(f"{url}: {_text(error)}: {MISCONFIGURED[number]}")
    if first and isinstance(error, RuntimeError) and "cryptography" in str(error):
        return ConfigurationError(
            f"{url}: this user's password goes over an unencrypted connection only with the package cryptography: "
            "pip install cryptography, or write ssl_mode=required in the URL"
        )
    if number in TOO_LARGE:
        return TooLarge(f"{url}: {_text(error)}: raise the server's max_allowed_packet, or send less at once")
    if number in REFUSED:
        return Refused(f"{url}: {_text(error)}: {REFUSED[number]}")
    advice = f": {PASSES[number]}" if number in PASSES else unreached(error)
    return Unavailable(f"{url}: {_text(error)}{advice}")


def code(error: BaseException) -> int:
    """The server's number for an error; 0 for what it did not say."""
    known = isinstance(error, _named.MySQLError) and error.args and isinstance(error.args[0], int)
    return error.args[0] if known else 0


def is_foreign(error: BaseException) -> bool:
    """Whether it is of the client library or the network."""
    return isinstance(error, (_named.MySQLError, OSError, EOFError))


def refuses_commit(error: BaseException) -> bool:
    """Whether the server has surely rolled a transaction back instead of committing it."""
    return code(error) in AGAIN


def wiped(error: BaseException) -> bool:
    """Whether the tables are gone."""
    return code(error) in _WIPED


def _text(error: BaseException) -> str:
    said = str(error.args[1] if len(error.args) > 1 else error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
