"""Tables that another role has made, and what the server's settings are worth."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.servers.postgresql import PASSWORD, PostgresqlServer

from easybus.clock import SystemClock
from easybus.engines.contract import (
    AuditedEngine,
    Claim,
    DeadLetter,
    DeclareQueue,
    DeclareTopic,
    Half,
    Publication,
    SchemaEngine,
)
from easybus.engines.postgresql import create, schema
from easybus.engines.postgresql.engine import PostgresqlEngine
from easybus.engines.postgresql.location import locate
from easybus.errors import ConfigurationError

from .conftest import Opener

CATALOGUE = """
SELECT table_name, column_name, ordinal_position, column_default, is_nullable, data_type, collation_name, is_identity
FROM information_schema.columns WHERE table_schema = '{0}' ORDER BY 1, 3;
SELECT tablename, replace(indexdef, '{0}', '') FROM pg_indexes WHERE schemaname = '{0}' ORDER BY indexname;
SELECT relname, relkind, reloptions FROM pg_class WHERE relnamespace = '{0}'::regnamespace ORDER BY 1;
"""


@pytest.fixture
def limited(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A role that may connect and nothing else."""
    postgresql_server.psql(f"CREATE ROLE limited LOGIN PASSWORD '{PASSWORD}'")
    yield "limited"
    postgresql_server.psql("DROP OWNED BY limited")
    postgresql_server.psql("DROP ROLE limited")


def schema_in(url: str) -> str:
    return url.partition("schema=")[2]


def catalogue(server: PostgresqlServer, schema: str) -> str:
    parts = [server.psql(query.strip()) for query in CATALOGUE.format(schema).split(";\n")[:-1]]
    return "\n".join(parts).replace(f"{schema}.", "")


async def test_a_role_without_rights_is_told_the_command_and_works_on_what_that_made(
    postgresql_server: PostgresqlServer, limited: str, opened: Opener
) -> None:
    url = postgresql_server.schema()
    poor = url.replace("//postgres:", f"//{limited}:")
    with pytest.raises(ConfigurationError, match="may not make the bus's tables") as refused:
        await opened(poor)
    assert f"easybus schema --url '{poor.replace(f':{PASSWORD}', '')}'" in str(refused.value)

    script = create(poor, SystemClock()).schema()
    postgresql_server.psql(script)
    grants = [line.removeprefix("--   ") for line in script.splitlines() if line.startswith("--   GRANT")]
    assert len(grants) == 3
    for grant in grants:
        postgresql_server.psql(grant.replace("the_bus", limited))

    engine = await opened(poor)
    await engine.driver.declare([DeclareQueue("jobs"), DeclareTopic("news")])
    await engine.driver.publish([Publication(False, "jobs", b"1")])
    (taken,) = await engine.driver.take("jobs", 1, 2.0, 30.0, lambda one: (Claim("jobs", "1", b"d", 30.0), None))
    assert taken.delivery.body == b"1"
    await engine.dead_letters.store(DeadLetter(queue="jobs", body=b"1", reason="why"))
    await engine.transactions.store(Half(id="1", service="s", topic="news", body=b"1"), 60.0)
    assert await engine.outbox.claim("s", 1, 10.0) == []
    assert await engine.idempotency.purge() == 0
    assert await engine.driver.purge("jobs") == 0
    await engine.driver.drop([DeclareQueue("jobs"), DeclareTopic("news")])


async def test_the_script_makes_what_opening_makes(postgresql_server: PostgresqlServer, opened: Opener) -> None:
    ours, theirs = postgresql_server.schema(), postgresql_server.schema()
    engine = await opened(ours)
    assert isinstance(engine, SchemaEngine)
    postgresql_server.psql(create(theirs, SystemClock()).schema())
    made = catalogue(postgresql_server, schema_in(theirs))
    assert made == catalogue(postgresql_server, schema_in(ours))
    assert "outbox_free" in made
    await opened(theirs)
    assert catalogue(postgresql_server, schema_in(theirs)) == made


async def test_settings_that_weaken_what_is_confirmed_are_told(
    postgresql_server: PostgresqlServer, engine: PostgresqlEngine, opened: Opener, url: str
) -> None:
    assert isinstance(engine, AuditedEngine)
    assert await engine.durability() == []
    postgresql_server.psql("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        weak = await (await opened(url)).durability()
    finally:
        postgresql_server.psql("ALTER ROLE postgres RESET synchronous_commit")
    assert len(weak) == 1
    assert "synchronous_commit is off" in weak[0]
    assert PASSWORD not in weak[0]
    schema = schema_in(url)
    postgresql_server.psql(f"ALTER TABLE {schema}.dead SET UNLOGGED")
    assert [f'"{schema}"."dead" is unlogged' in found for found in await engine.durability()] == [True]


async def test_older_tables_are_brought_up_to_date_with_what_they_hold(
    postgresql_server: PostgresqlServer, opened: Opener
) -> None:
    url, fresh = postgresql_server.schema(), postgresql_server.schema()
    names = locate(url).names
    postgresql_server.psql(names("CREATE SCHEMA {schema}"))
    postgresql_server.psql(names(schema.MIGRATIONS[0]))
    postgresql_server.psql(names("INSERT INTO {meta} VALUES ('version', '1'), ('identity', 'the same')"))
    columns = "(queue, key, digest, secret, replay, until_at, state, starts, again)"
    for key, until, state in (("1", "1 minute", 2), ("2", "-1 minute", 2), ("3", "1 minute", 1)):
        values = f"('jobs', '{key}', '', {key}, '', now() + interval '{until}', {state}, 1, false)"
        postgresql_server.psql(names(f"INSERT INTO {{key}} {columns} VALUES {values}"))
    engine = await opened(url)
    await opened(fresh)
    assert catalogue(postgresql_server, schema_in(url)) == catalogue(postgresql_server, schema_in(fresh))
    keys = engine.idempotency
    assert [await keys.lookup("jobs", key) for key in "123"] == ["done", "free", "claimed"]
    assert await keys.purge() == 1
    assert await keys.complete([("3-3", 60.0)]) == [True]
    assert [await keys.lookup("jobs", key) for key in "123"] == ["done", "free", "done"]
