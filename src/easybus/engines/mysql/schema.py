"""The tables, and how they come about: by whoever is first, under a named lock; newer ones are refused.

Times are microseconds by the server's clock; text that users give is bytes (see `names`). A definition is committed
by itself here, so each makes what is missing and leaves what is there: one that dies half way is gone on with.
"""

from __future__ import annotations

import uuid

from ...errors import ConfigurationError, Unavailable
from .failures import code, wiped
from .link import Link
from .names import Names, quote

VERSION = 2
_ID = "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"
_TABLE = "ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin ROW_FORMAT=DYNAMIC"

_VERSION_1 = f"""
CREATE TABLE IF NOT EXISTS {{meta}} (
  name VARBINARY(64) NOT NULL PRIMARY KEY, value VARBINARY(255) NOT NULL) {_TABLE};
INSERT IGNORE INTO {{meta}} VALUES ('bindings', '1');

-- Its counter gives fences: never one twice, whatever becomes of the rows.
CREATE TABLE IF NOT EXISTS {{fence}} (id {_ID}) {_TABLE};

-- Ids are never reused: what a dropped queue left in another process's hands must not reach a new one.
CREATE TABLE IF NOT EXISTS {{queue}} (id {_ID}, name VARBINARY(255) NOT NULL UNIQUE, delay DOUBLE NOT NULL) {_TABLE};
CREATE TABLE IF NOT EXISTS {{topic}} (id {_ID}, name VARBINARY(255) NOT NULL UNIQUE) {_TABLE};
CREATE TABLE IF NOT EXISTS {{binding}} (
  id {_ID}, topic_id BIGINT NOT NULL, queue_id BIGINT NOT NULL, pattern LONGBLOB NOT NULL,
  KEY of_topic (topic_id), KEY of_queue (queue_id)) {_TABLE};

-- owner: 0, or the random number of the fetch that holds it until visible_at.
CREATE TABLE IF NOT EXISTS {{message}} (
  id {_ID}, queue_id BIGINT NOT NULL, visible_at BIGINT NOT NULL, owner BIGINT NOT NULL DEFAULT 0,
  attempt INT NOT NULL DEFAULT 0, body LONGBLOB NOT NULL, KEY due (queue_id, visible_at, id)) {_TABLE};

-- place: of queue and id. state: 0 free, 1 claimed, 2 done. until_at: the end of the first lease, or when the row may
-- be forgotten.
CREATE TABLE IF NOT EXISTS {{key}} (
  id {_ID}, place VARBINARY(520) NOT NULL, digest VARBINARY(255) NOT NULL, secret VARBINARY(64) NOT NULL,
  replay VARBINARY(255) NOT NULL, until_at BIGINT NOT NULL, starts INT NOT NULL, state TINYINT NOT NULL,
  again TINYINT NOT NULL, UNIQUE KEY place (place), KEY ended (state, until_at)) {_TABLE};

-- Renewals, in rows of their own: the key's row is left alone while a handler's transaction is to change it.
CREATE TABLE IF NOT EXISTS {{lease}} (
  key_id BIGINT NOT NULL PRIMARY KEY, secret VARBINARY(64) NOT NULL, until_at BIGINT NOT NULL) {_TABLE};

-- place: of queue and key. named: of queue and message id. scope: of queue.
CREATE TABLE IF NOT EXISTS {{dead}} (
  id {_ID}, place VARBINARY(520) NOT NULL UNIQUE, named VARBINARY(520) NOT NULL, scope VARBINARY(520) NOT NULL,
  queue LONGBLOB NOT NULL, `key` LONGBLOB NOT NULL, message_id LONGBLOB NOT NULL, body LONGBLOB NOT NULL,
  reason LONGBLOB NOT NULL, error_type LONGBLOB NOT NULL, error LONGBLOB NOT NULL, traceback LONGBLOB NOT NULL,
  attempts BIGINT NOT NULL, first_failed DOUBLE NOT NULL, last_failed DOUBLE NOT NULL, history LONGBLOB NOT NULL,
  fence BIGINT NOT NULL, marked TINYINT NOT NULL DEFAULT 0, until_at BIGINT NOT NULL DEFAULT 0,
  KEY named (named), KEY marked (scope, marked, until_at, id), KEY oldest (last_failed, id)) {_TABLE};

-- place: of the id. scope: of service and topic.
CREATE TABLE IF NOT EXISTS {{half}} (
  `key` {_ID}, place VARBINARY(520) NOT NULL UNIQUE, scope VARBINARY(520) NOT NULL, id LONGBLOB NOT NULL,
  service LONGBLOB NOT NULL, topic LONGBLOB NOT NULL, body LONGBLOB NOT NULL, token VARBINARY(64) NOT NULL,
  due_at BIGINT NOT NULL, checks INT NOT NULL, parked TINYINT NOT NULL, created_at BIGINT NOT NULL,
  error LONGBLOB NOT NULL, KEY due (scope, due_at, `key`)) {_TABLE};

-- lane: of the caller's transaction (see outbox.py). scope: of service. origin: so that a row written twice fails.
CREATE TABLE IF NOT EXISTS {{outbox}} (
  id {_ID}, origin VARBINARY(64) NOT NULL UNIQUE, lane VARBINARY(32) NOT NULL, scope VARBINARY(520) NOT NULL,
  to_topic TINYINT NOT NULL, name LONGBLOB NOT NULL, body LONGBLOB NOT NULL, route_key LONGBLOB NOT NULL,
  delay DOUBLE, dedupe_id LONGBLOB NOT NULL, `require` TINYINT NOT NULL, token VARBINARY(64) NOT NULL DEFAULT '',
  due_at BIGINT NOT NULL DEFAULT 0, failures INT NOT NULL DEFAULT 0, parked TINYINT NOT NULL DEFAULT 0,
  error LONGBLOB NOT NULL, created_at BIGINT NOT NULL,
  KEY free (scope, parked, due_at, id), KEY of_lane (lane, id)) {_TABLE}
"""

_VERSION_2 = """
-- forget_at: when the row is looked at to be forgotten, which a completion seldom changes. What claims mostly write
-- has a default: a hundred rows are read in half of the time.
ALTER TABLE {key}
  ADD COLUMN forget_at BIGINT NOT NULL DEFAULT 0, ALTER COLUMN replay SET DEFAULT '', ALTER COLUMN starts SET DEFAULT 1,
  ALTER COLUMN state SET DEFAULT 1, ALTER COLUMN again SET DEFAULT 0, DROP KEY ended, ADD KEY ended (forget_at);
UPDATE {key} SET forget_at = until_at WHERE forget_at = 0
"""

MIGRATIONS = (_VERSION_1, _VERSION_2)
"""What brings tables from each version to the next."""

_GET_META = "SELECT value FROM {meta} WHERE name = %s"
_SET_META = "INSERT INTO {meta} VALUES (%s, %s) ON DUPLICATE KEY UPDATE value = VALUES(value)"
_LOCK = "SELECT GET_LOCK(%s, 50)"
_UNLOCK = "DO RELEASE_LOCK(%s)"
VERSION_OF = "SELECT value FROM {meta} WHERE name = 'version'"
"""The version of the tables that there are."""

IDENTITY = (  # of these very tables; a copy of them has it too
    "SELECT CONVERT(value USING utf8mb4) FROM {meta} WHERE name = 'identity'"
)


_THIS_VERSION = f"INSERT INTO {{meta}} VALUES ('version', '{VERSION}') ON DUPLICATE KEY UPDATE value = VALUES(value)"
_FRESH_IDENTITY = "INSERT IGNORE INTO {meta} VALUES ('identity', UUID())"
_NO_PRIVILEGE = (1044, 1142)
_DONE_BEFORE = 1060
"""The column is there: whoever added it died before the version was written."""


def script(names: Names, since: int) -> str:
    """What `prepare` would run on tables of this version (0: none). Raises `ConfigurationError`: no such version."""
    if not 0 <= since <= VERSION:
        raise ConfigurationError(f"there are no tables of version {since}; the versions are 0 (none) to {VERSION}")
    steps = [step.strip() for step in MIGRATIONS[since:]]
    steps += [_FRESH_IDENTITY, _THIS_VERSION] if steps else []
    grants = (
        "-- What another user needs to use them:\n"
        f"--   GRANT SELECT, INSERT, UPDATE, DELETE ON {quote(names.database)}.* TO the_bus\n"
    )
    return ("" if since else grants) + names("".join(f"{step};\n" for step in steps))


async def prepare(link: Link, names: Names, url: str) -> None:
    """Make the tables, or bring them up to date.

    Raises `ConfigurationError` for those of a newer easybus, and where the user may not make them.
    """
    try:
        await _prepare(link, names, url)
    except Exception as error:
        if code(error) not in _NO_PRIVILEGE:
            raise
        raise ConfigurationError(
            f"{url}: this user may not make the bus's tables, or use them ({error.args[-1]}); what another user may "
            f"run, and GRANT to this one, is printed by: easybus schema --url '{url}'"
        ) from error


async def _prepare(link: Link, names: Names, url: str) -> None:
    if await _version(link, names, url) == VERSION:
        return
    if await link.value(_LOCK, names.lock) != 1:
        raise Unavailable(f"{url}: others have been making the tables for 50 s")
    try:
        found = await _version(link, names, url)  # read again: others may have been quicker
        for step in range(found, VERSION):
            for statement in MIGRATIONS[step].split(";"):
                await _migrate(link, statement)
        if found < VERSION:
            if await link.value(_GET_META, "identity") is None:
                await link.one(_SET_META, "identity", str(uuid.uuid4()))
            await link.one(_SET_META, "version", str(VERSION))
    finally:
        if link.alive:
            await link.one(_UNLOCK, names.lock)


async def _migrate(link: Link, statement: str) -> None:
    try:
        await link.one(statement)
    except Exception as error:
        if code(error) != _DONE_BEFORE:
            raise


async def _version(link: Link, names: Names, url: str) -> int:
    try:
        version = int(await link.value(_GET_META, "version") or 0)
    except Exception as error:
        if wiped(error):
            return 0
        raise
    if version > VERSION:
        raise ConfigurationError(
            f"{url}: the tables were made by a newer easybus (version {version}, this easybus knows {VERSION}): "
            "pip install --upgrade easybus"
        )
    return version
