"""Names in SQL, and text as it is held here.

Tables are named in statements as `{message}`; `Names` puts the quoted name of this bus's own table there, and of
`{now}` the server's time: microseconds since 1970, whatever the session's time zone is. `{status}` is where a session
reads its counters.

Text that users give is held as bytes (`VARBINARY`, `LONGBLOB`): exact in case, accents and trailing spaces, which
collations are not; of any length in an index, where `place` puts a digest for what is too long.
"""

from __future__ import annotations

import hashlib
import math

TABLES = ("meta", "queue", "topic", "binding", "message", "key", "lease", "dead", "half", "outbox", "fence")
LONGEST_TABLE = max(len(name) for name in TABLES)
FOREVER = 1e10
"""Seconds: longer than any lease or memory, and still a time that a row can hold."""

_NOW = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
_INDEXED = 500  # bytes of a text that stand in an index as they are


class Names:
    """The tables of one bus in one database."""

    def __init__(self, database: str, prefix: str) -> None:
        self.database = database
        self.prefix = prefix
        self._quoted = {name: f"{quote(database)}.{quote(prefix + name)}" for name in TABLES}
        self._quoted["now"] = _NOW
        self._made: dict[str, str] = {}
        self.mariadb = True
        digest = hashlib.blake2b(f"{database}\0{prefix}".encode(), digest_size=16).hexdigest()
        self.lock = f"easybus {digest}"
        """The named lock under which its tables are made."""

    @property
    def mariadb(self) -> bool:
        """Whether the server is MariaDB; until one has been asked, it is."""
        return self._mariadb

    @mariadb.setter
    def mariadb(self, is_so: bool) -> None:
        self._mariadb = is_so
        self._quoted["status"] = f"{'information' if is_so else 'performance'}_schema.session_status"
        self._made.clear()

    def __call__(self, statement: str) -> str:
        """The statement with the tables' names in it."""
        made = self._made.get(statement)
        if made is None:
            made = self._made[statement] = statement.format_map(self._quoted)
        return made

    def __repr__(self) -> str:
        return f"Names({self.database!r}, {self.prefix!r})"


def quote(name: str) -> str:
    """A quoted identifier."""
    return "`" + name.replace("`", "``") + "`"


def held(text: str) -> bytes:
    """Any text as it is held, halves of surrogate pairs too."""
    return text.encode("utf-8", "surrogatepass")


def read(data: bytes) -> str:
    """What was held."""
    return data.decode("utf-8", "surrogatepass")


def place(*texts: str) -> bytes:
    """What stands for one or more texts in a unique index: no two lists of texts have the same."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    found = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return found if len(found) <= _INDEXED else b"h" + hashlib.sha256(found).digest()


def micros(seconds: float) -> int:
    """Microseconds, never fewer than the seconds; as many as a row can hold at most."""
    return math.ceil(min(seconds, FOREVER) * 1_000_000)


def ident(text: str) -> int:
    """A row's id out of a token or a fence; 0, which no row has, for what is no number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
