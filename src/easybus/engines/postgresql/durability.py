"""Which settings of the server, or of our own tables, weaken "confirmed is kept"."""

from __future__ import annotations

from .connections import Connection
from .names import TABLES, Names, quote

_SETTINGS = (  # as they are for this role in this database, before a statement of ours sets any for itself
    "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'synchronous_standby_names')"
)
_UNLOGGED = (  # tables that the server empties after a crash
    "SELECT relname FROM pg_class JOIN pg_namespace AS schema ON schema.oid = relnamespace "
    "WHERE nspname = $1 AND relname = ANY($2::text[]) AND relpersistence = 'u' ORDER BY relname"
)


async def weaknesses(connection: Connection, names: Names) -> list[str]:
    """A sentence for each."""
    settings: dict[str, str] = {row["name"]: row["setting"] for row in await connection.fetch(_SETTINGS)}
    found: list[str] = []
    if settings.get("fsync") == "off":
        found.append("fsync is off: a crash of the server's host may lose or damage all of it; set fsync=on")
    commit = settings.get("synchronous_commit")
    if commit == "off":
        found.append(
            "synchronous_commit is off: a crash of the server may undo what was confirmed in the second before it; "
            "set it on, for the bus's role at least: ALTER ROLE … SET synchronous_commit = on"
        )
    elif commit == "local" and settings.get("synchronous_standby_names"):
        found.append(
            "synchronous_commit is local: no standby is waited for, so a failover may undo what was confirmed; set it "
            "on, for the bus's role at least: ALTER ROLE … SET synchronous_commit = on"
        )
    unlogged = await connection.fetch(_UNLOGGED, names.schema, [names.prefix + table for table in TABLES])
    for row in unlogged:
        table = f"{quote(names.schema)}.{quote(row['relname'])}"
        found.append(f"table {table} is unlogged: a crash of the server empties it; ALTER TABLE {table} SET LOGGED")
    return found
