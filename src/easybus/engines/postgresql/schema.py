"""The tables, and how they come about: by whoever is first, under an advisory lock; newer ones are refused.

Times are the server's own (`timestamptz`); text that users give is escaped (see `names.escape`). Columns that change
with every claim are few, and the busy tables are vacuumed early: dead rows are what slows a queue in a database down.
"""

from __future__ import annotations

import uuid

from ...errors import ConfigurationError
from .connections import Connection
from .names import Names

VERSION = 2

_BUSY = (
    "WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)"
)

_VERSION_1 = f"""
CREATE TABLE {{meta}} (name text PRIMARY KEY, value text NOT NULL);
INSERT INTO {{meta}} VALUES ('bindings', '1');

-- A fence is never given out twice, whatever becomes of the rows.
CREATE SEQUENCE {{fence}};

-- Ids are never reused: what a dropped queue left in another process's hands must not reach a new one.
CREATE TABLE {{queue}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE,
  delay double precision NOT NULL);
CREATE TABLE {{topic}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE);
CREATE TABLE {{binding}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic_id bigint NOT NULL, queue_id bigint NOT NULL,
  pattern text COLLATE "C" NOT NULL);

-- owner: 0, or the random number of the delivery that lasts until visible_at.
CREATE TABLE {{message}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue_id bigint NOT NULL, visible_at timestamptz NOT NULL,
  owner bigint NOT NULL DEFAULT 0, attempt integer NOT NULL DEFAULT 0, body bytea NOT NULL) {_BUSY};
ALTER TABLE {{message}} ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX {{message_due}} ON {{message}} (queue_id, visible_at, id);

-- state: 0 free, 1 claimed, 2 done. until_at: the end of the first lease, or when the row may be forgotten.
CREATE TABLE {{key}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, until_at timestamptz NOT NULL, starts integer NOT NULL,
  state smallint NOT NULL, again boolean NOT NULL, queue text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL,
  digest bytea NOT NULL, secret bigint NOT NULL, replay text NOT NULL, UNIQUE (queue, key)) {_BUSY};
CREATE INDEX {{key_over}} ON {{key}} (until_at) WHERE state <> 1;

-- Renewals, in rows of their own: the key's row is left alone while a handler's transaction is to change it.
CREATE TABLE {{lease}} (key_id bigint PRIMARY KEY, secret bigint NOT NULL, until_at timestamptz NOT NULL) {_BUSY};

CREATE TABLE {{dead}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, queue text COLLATE "C" NOT NULL, place text COLLATE "C" NOT NULL,
  key text NOT NULL, message_id text NOT NULL, body bytea NOT NULL, reason text NOT NULL, error_type text NOT NULL,
  error text NOT NULL, traceback text NOT NULL, attempts bigint NOT NULL, first_failed double precision NOT NULL,
  last_failed double precision NOT NULL, history text NOT NULL, fence bigint NOT NULL,
  marked boolean NOT NULL DEFAULT false, until_at timestamptz NOT NULL DEFAULT '-infinity', UNIQUE (queue, place));
CREATE INDEX {{dead_marked}} ON {{dead}} (queue, until_at) WHERE marked;
CREATE INDEX {{dead_oldest}} ON {{dead}} (last_failed, id);

CREATE TABLE {{half}} (
  key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, place text COLLATE "C" NOT NULL UNIQUE, id text NOT NULL,
  service text COLLATE "C" NOT NULL, topic text COLLATE "C" NOT NULL, body bytea NOT NULL, token text NOT NULL,
  due_at timestamptz NOT NULL, checks integer NOT NULL, parked boolean NOT NULL, created_at timestamptz NOT NULL,
  error text NOT NULL);
CREATE INDEX {{half_due}} ON {{half}} (service, topic, due_at);

-- transaction: the caller's, by the server's own number for it. origin: so that a row written twice fails.
CREATE TABLE {{outbox}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, origin text NOT NULL UNIQUE, service text COLLATE "C" NOT NULL,
  transaction text COLLATE "C" NOT NULL DEFAULT pg_current_xact_id()::text, to_topic boolean NOT NULL,
  name text NOT NULL, body bytea NOT NULL, route_key text NOT NULL, delay double precision, dedupe_id text NOT NULL,
  require boolean NOT NULL, token text NOT NULL DEFAULT '', due_at timestamptz NOT NULL DEFAULT '-infinity',
  failures integer NOT NULL DEFAULT 0, parked boolean NOT NULL DEFAULT false, error text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT now()) {_BUSY};
CREATE INDEX {{outbox_free}} ON {{outbox}} (service, id) WHERE NOT parked;
CREATE INDEX {{outbox_transaction}} ON {{outbox}} (transaction, id)
"""

_VERSION_2 = """
-- forget_at: when the row is looked at to be forgotten. No index is on what a completion changes, and pages have room
-- for its new row: so it is written there only.
ALTER TABLE {key} ADD COLUMN forget_at timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE {key} SET (fillfactor = 70);
DROP INDEX {schema}.{key_over};
CREATE INDEX {key_forget} ON {key} (forget_at)
"""

MIGRATIONS = (_VERSION_1, _VERSION_2)
"""What brings a schema from each version to the next."""

_EXISTS = (  # asked of the catalogue itself: to_regclass may still answer from before the lock was waited for
    "SELECT EXISTS (SELECT 1 FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace "
    "WHERE nspname = $1 AND relname = $2)"
)
_SCHEMA_EXISTS = "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)"
_GET_META = "SELECT value FROM {meta} WHERE name = $1"
_SET_META = "INSERT INTO {meta} VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
VERSION_OF = "SELECT value FROM {meta} WHERE name = 'version'"
"""The version of the tables that there are."""

IDENTITY = (  # this very schema in this very cluster: a copy of either has another
    "SELECT (SELECT value FROM {meta} WHERE name = 'identity') || ' ' || current_database() || ' ' || "
    "(SELECT system_identifier FROM pg_control_system())"
)


_CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {schema}"
_THIS_VERSION = (
    f"INSERT INTO {{meta}} VALUES ('version', '{VERSION}') ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_FRESH_IDENTITY = "INSERT INTO {meta} VALUES ('identity', gen_random_uuid()::text) ON CONFLICT (name) DO NOTHING"
_GRANTS = """-- What another role needs to use them:
--   GRANT USAGE ON SCHEMA {schema} TO the_bus
--   GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO the_bus
--   GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO the_bus
"""
_NO_PRIVILEGE = "42501"


def script(names: Names, since: int) -> str:
    """What `prepare` would run on tables of this version (0: none). Raises `ConfigurationError`: no such version."""
    if not 0 <= since <= VERSION:
        raise ConfigurationError(f"there are no tables of version {since}; the versions are 0 (none) to {VERSION}")
    steps = [step.strip() for step in MIGRATIONS[since:]]
    steps = [*([] if since else [_CREATE_SCHEMA]), *steps, _THIS_VERSION, _FRESH_IDENTITY] if steps else []
    return names(("" if since else _GRANTS) + "".join(f"{step};\n" for step in steps))


async def prepare(connection: Connection, names: Names, url: str) -> None:
    """Make the tables, or bring them up to date.

    Raises `ConfigurationError` for those of a newer easybus, and where the role may not make or use them.
    """
    found = 0
    try:
        found = await _version(connection, names, url)
        if found < VERSION:
            await _migrate(connection, names, url)
    except Exception as error:
        if getattr(error, "sqlstate", None) != _NO_PRIVILEGE:
            raise
        since = f" --from {found}" if found else ""
        raise ConfigurationError(
            f"{url}: this role may not make the bus's tables, or use them ({error}); what a role that may runs, and "
            f"GRANTs to this one, is printed by: easybus schema --url '{url}'{since}"
        ) from error


async def _migrate(connection: Connection, names: Names, url: str) -> None:
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", names.lock)
        found = await _version(connection, names, url)  # read again: others may have been quicker
        if found == VERSION:
            return
        if not await connection.fetchval(_SCHEMA_EXISTS, names.schema):
            await connection.execute(names("CREATE SCHEMA {schema}"))
        for step in range(found, VERSION):
            await connection.execute(names(MIGRATIONS[step]))
        await connection.execute(names(_SET_META), "version", str(VERSION))
        if await connection.fetchval(names(_GET_META), "identity") is None:
            await connection.execute(names(_SET_META), "identity", str(uuid.uuid4()))


async def _version(connection: Connection, names: Names, url: str) -> int:
    if not await connection.fetchval(_EXISTS, names.schema, f"{names.prefix}meta"):
        return 0
    version = int(await connection.fetchval(names(_GET_META), "version") or 0)
    if version > VERSION:
        raise ConfigurationError(
            f"{url}: the tables were made by a newer easybus (version {version}, this easybus knows {VERSION}): "
            "pip install --upgrade easybus"
        )
    return version
