"""Tables that another user has made, and what the server's settings are worth."""

from __future__ import annotations

import pytest
from tests.servers.mariadb import PASSWORD, USER, MariadbServer

from easybus.clock import SystemClock
from easybus.engines.contract import AuditedEngine, DeclareQueue, Publication, SchemaEngine
from easybus.engines.mysql import create
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.names import TABLES
from easybus.errors import ConfigurationError

from .conftest import Opener


def definitions(server: MariadbServer, url: str) -> list[str]:
    prefix = url.partition("prefix=")[2]
    return [server.sql(f"SHOW CREATE TABLE test.`{prefix}{name}`").replace(prefix, "") for name in TABLES]


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
