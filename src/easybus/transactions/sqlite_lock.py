"""What both SQLite libraries need before anything is read on a caller's connection."""

from __future__ import annotations

WRITE_LOCK = 'UPDATE "easybus_meta" SET value = value WHERE 0'
"""Changes nothing, and makes a deferred transaction the file's writer. If it read first, any commit of another
connection before its first write would fail that write at once (SQLITE_BUSY_SNAPSHOT), whatever its busy timeout."""

NO_SUCH_TABLE = 1
"""SQLITE_ERROR: what a statement on a table that is not there gives."""
