"""Names in SQL, and text as PostgreSQL holds it.

Tables are named in statements as `{message}`; `Names` puts the quoted name of this bus's own table there. Text that
users give may hold what a `text` column cannot (NUL, halves of surrogate pairs): it is escaped with a backslash,
reversibly, so no two of it collide.
"""

from __future__ import annotations

import hashlib
import re

TABLES = ("meta", "queue", "topic", "binding", "message", "key", "lease", "dead", "half", "outbox", "fence")
INDEXES = (
    *("message_due", "key_over", "key_forget", "dead_marked", "dead_oldest", "half_due", "outbox_free"),
    "outbox_transaction",
)
LONGEST_TABLE = max(len(name) for name in (*TABLES, *INDEXES))

_INDEXED = 500  # bytes: three such columns stay below what an index entry holds (2,704)
_SPECIAL = re.compile("[\\\\\0\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|0|u[0-9a-f]{4})")


class Names:
    """The tables of one bus in one database."""

    def __init__(self, schema: str, prefix: str) -> None:
        self.schema = schema
        self.prefix = prefix
        quoted = quote(schema)
        self._quoted = {name: f"{quoted}.{quote(prefix + name)}" for name in TABLES}
        self._quoted |= {name: quote(prefix + name) for name in INDEXES}  # an index lies where its table does
        self._quoted["schema"] = quoted
        self._quoted["fence_text"] = literal(self._quoted["fence"])  # a sequence is named to functions by a text
        self._named: dict[str, str] = {}
        self.digest = hashlib.blake2b(f"{schema}\0{prefix}".encode(), digest_size=8)
        self.channel = f"easybus_{self.digest.hexdigest()}"
        """Where this bus's notifications go."""
        self.lock = int.from_bytes(self.digest.digest(), "big", signed=True)
        """The advisory lock under which its tables are made."""

    def __call__(self, statement: str) -> str:
        """The statement with the tables' names in it."""
        if statement not in self._named:
            self._named[statement] = statement.format_map(self._quoted)
        return self._named[statement]

    def __repr__(self) -> str:
        return f"Names({self.schema!r}, {self.prefix!r})"


def quote(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A quoted text, whatever the session takes a backslash for."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def escape(text: str) -> str:
    """Any text, as a `text` column can hold it."""
    return _SPECIAL.sub(_escape, text) if _SPECIAL.search(text) else text


def _escape(match: re.Match[str]) -> str:
    found = match[0]
    return {"\\": "\\\\", "\0": "\\0"}.get(found) or f"\\u{ord(found):04x}"


def unescape(text: str) -> str:
    """What was escaped."""
    return _ESCAPED.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    found = match[1]
    return {"\\": "\\", "0": "\0"}.get(found) or chr(int(found[1:], 16))


def indexed(text: str) -> str:
    """What stands for a text in an index: itself, escaped, or its digest where that is too long."""
    escaped = escape(text)
    if len(escaped) <= _INDEXED // 4 or len(escaped.encode()) <= _INDEXED:
        return escaped
    return "\\h" + hashlib.sha256(escaped.encode()).hexdigest()  # no escaped text begins so
