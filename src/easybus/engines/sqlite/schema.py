"""The tables, their version, and how a database comes to have them.

All times are microseconds since 1970 by the host's clock. The file may hold the user's own tables too: every name of
ours begins with `easybus_`. A database of a newer easybus is refused, an older one is brought up to date, both in the
transaction that looks.
"""

from __future__ import annotations

import uuid

from ...errors import ConfigurationError
from .connect import Connection, patiently

VERSION = 1

_VERSION_1 = """
CREATE TABLE "easybus_meta" (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO "easybus_meta" VALUES ('bindings', 1), ('fence', 0);

-- Ids of queues are never reused: what a dropped queue left in another process's hands must not reach a new one.
CREATE TABLE "easybus_queue" (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, delay INTEGER NOT NULL);
CREATE TABLE "easybus_topic" (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE "easybus_binding" (
  id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, queue_id INTEGER NOT NULL, pattern TEXT NOT NULL,
  UNIQUE (topic_id, queue_id, pattern));

-- owner: 0, or the random number of the fetch that holds it until visible_at.
CREATE TABLE "easybus_message" (
  id INTEGER PRIMARY KEY, queue_id INTEGER NOT NULL, visible_at INTEGER NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0, owner INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL);
CREATE INDEX "easybus_message_due" ON "easybus_message" (queue_id, visible_at);

-- state: 0 free, 1 claimed, 2 done. until_at: when the lease ends, or when the row may be forgotten.
CREATE TABLE "easybus_key" (
  id INTEGER PRIMARY KEY, queue TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, token INTEGER NOT NULL,
  state INTEGER NOT NULL, starts INTEGER NOT NULL, replay TEXT NOT NULL, until_at INTEGER NOT NULL,
  UNIQUE (queue, key));
CREATE INDEX "easybus_key_over" ON "easybus_key" (until_at) WHERE state <> 1;

CREATE TABLE "easybus_dead" (
  id INTEGER PRIMARY KEY, queue TEXT NOT NULL, key TEXT NOT NULL, message_id TEXT NOT NULL, body BLOB NOT NULL,
  reason TEXT NOT NULL, error_type TEXT NOT NULL, error TEXT NOT NULL, traceback TEXT NOT NULL,
  attempts INTEGER NOT NULL, first_failed INTEGER NOT NULL, last_failed INTEGER NOT NULL, history TEXT NOT NULL,
  fence INTEGER NOT NULL, marked INTEGER NOT NULL DEFAULT 0, until_at INTEGER NOT NULL DEFAULT 0,
  UNIQUE (queue, key));
CREATE INDEX "easybus_dead_marked" ON "easybus_dead" (queue, until_at) WHERE marked = 1;
CREATE INDEX "easybus_dead_oldest" ON "easybus_dead" (last_failed);

CREATE TABLE "easybus_half" (
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, service TEXT NOT NULL, topic TEXT NOT NULL, body BLOB NOT NULL,
  token TEXT NOT NULL, due_at INTEGER NOT NULL, checks INTEGER NOT NULL, parked INTEGER NOT NULL,
  created_at INTEGER NOT NULL, error TEXT NOT NULL);
CREATE INDEX "easybus_half_due" ON "easybus_half" (service, topic, due_at);

-- AUTOINCREMENT: ids are never reused, and sqlite_sequence tells the last one that is committed.
CREATE TABLE "easybus_outbox" (
  id INTEGER PRIMARY KEY AUTOINCREMENT, origin TEXT NOT NULL UNIQUE, service TEXT NOT NULL, writer TEXT NOT NULL,
  "transaction" TEXT NOT NULL, to_topic INTEGER NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
  route_key TEXT NOT NULL, delay REAL, dedupe_id TEXT NOT NULL, require INTEGER NOT NULL,
  token TEXT NOT NULL DEFAULT '', due_at INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
  parked INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
  created_at INTEGER NOT NULL);
CREATE INDEX "easybus_outbox_free" ON "easybus_outbox" (service, parked, id);
CREATE INDEX "easybus_outbox_transaction" ON "easybus_outbox" ("transaction", id)
"""

MIGRATIONS = (_VERSION_1,)
"""What brings a database from each version to the next."""

_FRESH_IDENTITY = "INSERT OR IGNORE INTO \"easybus_meta\" VALUES ('identity', lower(hex(randomblob(16))))"
_THIS_VERSION = "INSERT OR REPLACE INTO \"easybus_meta\" VALUES ('version', {version})"

_HAS_META = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'easybus_meta'"
_GET_META = 'SELECT value FROM "easybus_meta" WHERE name = ?'
_SET_META = 'INSERT INTO "easybus_meta" VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value'

VERSION_OF = "SELECT value FROM \"easybus_meta\" WHERE name = 'version'"
"""The version of the tables that there are."""

IDENTITY = (
    "SELECT (SELECT value FROM \"easybus_meta\" WHERE name = 'identity') || ' ' || "
    "(SELECT file FROM pragma_database_list WHERE name = 'main')"
)
"""This very database: a copy of the file has the same row, and another path."""


def script(since: int) -> str:
    """What `prepare` would run on tables of this version (0: none). Raises `ConfigurationError`: no such version."""
    if not 0 <= since <= VERSION:
        raise ConfigurationError(f"there are no tables of version {since}; the versions are 0 (none) to {VERSION}")
    steps = [step.strip() for step in MIGRATIONS[since:]]
    steps += [_THIS_VERSION.format(version=VERSION), _FRESH_IDENTITY] if steps else []
    return "".join(f"{step};\n" for step in steps)


def prepare(connection: Connection, path: str) -> None:
    """Make the tables, or bring them up to date. Raises `ConfigurationError` for those of a newer easybus."""
    if _version(connection, path) != VERSION:
        patiently(lambda: _migrate(connection, path))


def _version(connection: Connection, path: str) -> int:
    def look() -> int:
        if not connection.rows(_HAS_META):
            return 0
        found = connection.rows(_GET_META, ("version",))
        return int(found[0][0]) if found else 0

    version = patiently(look)
    if version > VERSION:
        raise ConfigurationError(
            f"{path} was made by a newer easybus (its tables are version {version}, this easybus knows {VERSION}): "
            "pip install --upgrade easybus"
        )
    return version


def _migrate(connection: Connection, path: str) -> None:
    connection.rows("BEGIN IMMEDIATE")
    try:
        for step in range(_version(connection, path), VERSION):  # read again: others may have been quicker
            for statement in MIGRATIONS[step].split(";\n"):
                connection.rows(statement)
        connection.rows(_SET_META, ("version", VERSION))
        if not connection.rows(_GET_META, ("identity",)):
            connection.rows(_SET_META, ("identity", str(uuid.uuid4())))
        connection.rows("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.rows("ROLLBACK")
        raise
