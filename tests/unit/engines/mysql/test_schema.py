"""Tables that another user has made, and what the server's settings are worth."""

from __future__ import annotations

import re

import pytest
from tests.servers.mariadb import PASSWORD, USER, MariadbServer

from easybus.clock import SystemClock
from easybus.engines.contract import AuditedEngine, DeclareQueue, Publication, SchemaEngine
from easybus.engines.mysql import create, schema
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.location import locate
from easybus.engines.mysql.names import TABLES, place
from easybus.errors import ConfigurationError

from .conftest import Opener


def definitions(server: MariadbServer, url: str) -> list[str]:
    prefix = url.partition("prefix=")[2]
    found = [server.sql(f"SHOW CREATE TABLE test.`{prefix}{name}`").replace(prefix, "") for name in TABLES]
    return [re.sub(r" AUTO_INCREMENT=\d+", "", one) for one in found]


async def test_a_user_without_rights_is_told_the_command_and_works_on_what_that_made(
    mariadb_server: MariadbServer, opened: Opener
) -> None:
    url = mariadb_server.database()
    database = url.rpartition("/")[2]
    poor = url.replace(f"//{USER}:", f"//{database}:")
    mariadb_server.sql(f"CREATE USER {database}@'%' IDENTIFIED BY '{PASSWORD}'")
    mariadb_server.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO {database}@'%'")
    with pytest.raises(ConfigurationError, match="may not make the bus's tables") as refused:
        await opened(poor)
    assert f"easybus schema --url '{poor.replace(f':{PASSWORD}', '')}'" in str(refused.value)
    script = create(poor, SystemClock()).schema()
    assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO the_bus" in script
    mariadb_server.sql(script)
    engine = await opened(poor)
    await engine.driver.declare([DeclareQueue("jobs")])
    await engine.driver.publish([Publication(False, "jobs", b"1")])
    assert [one.body for one in await engine.driver.fetch("jobs", 1, 2.0, 30.0)] == [b"1"]
    assert engine.outbox.identity()[1]


async def test_the_script_makes_what_opening_makes(mariadb_server: MariadbServer, opened: Opener) -> None:
    ours, theirs = mariadb_server.prefix(), mariadb_server.prefix()
    assert isinstance(await opened(ours), SchemaEngine)
    for statement in create(theirs, SystemClock()).schema().split(";\n"):  # as a migration runs them, one by one
        mariadb_server.sql(statement)
    made = definitions(mariadb_server, theirs)
    await opened(theirs)
    assert made == definitions(mariadb_server, ours) == definitions(mariadb_server, theirs)


@pytest.mark.parametrize("died", [False, True], ids=["from version 1", "whose migration was cut off"])
async def test_older_tables_are_brought_up_to_date_with_what_they_hold(
    mariadb_server: MariadbServer, opened: Opener, died: bool
) -> None:
    url, fresh = mariadb_server.prefix(), mariadb_server.prefix()
    names = locate(url).names
    first, second = (step.strip() for step in schema.MIGRATIONS)
    mariadb_server.sql(names(f"{first}; INSERT INTO {{meta}} VALUES ('version', '1'), ('identity', 'the same')"))
    now = mariadb_server.sql(names("SELECT {now}"))
    columns = "(place, digest, secret, replay, until_at, state, starts, again)"
    for key, until, state in (("1", int(now) + 60_000_000, 2), ("2", 1, 2), ("3", int(now) + 60_000_000, 1)):
        values = f"('{place('jobs', key).decode()}', 'd', 'b{key}', '', {until}, {state}, 1, 0)"
        mariadb_server.sql(names(f"INSERT INTO {{key}} {columns} VALUES {values}"))
    if died:
        mariadb_server.sql(names(second.partition(";")[0]))
    engine = await opened(url)
    await opened(fresh)
    assert definitions(mariadb_server, url) == definitions(mariadb_server, fresh)
    keys = engine.idempotency
    assert [await keys.lookup("jobs", key) for key in "123"] == ["done", "free", "claimed"]
    assert await keys.purge() == 1
    assert await keys.complete([("3-b3", 60.0)]) == [True]
    assert [await keys.lookup("jobs", key) for key in "123"] == ["done", "free", "done"]


async def test_settings_that_weaken_what_is_confirmed_are_told(
    mariadb_server: MariadbServer, engine: MysqlEngine
) -> None:
    assert isinstance(engine, AuditedEngine)
    assert await engine.durability() == []
    mariadb_server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    try:
        (weak,) = await engine.durability()
    finally:
        mariadb_server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    assert "innodb_flush_log_at_trx_commit is 2" in weak
