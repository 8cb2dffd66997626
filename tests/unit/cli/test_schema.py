"""`easybus schema`: the statements alone make what opening the bus makes."""

from __future__ import annotations

import sqlite3

from easybus.engines.contract import DeclareQueue, Engine, Publication

from .conftest import Shell
from .test_run import APP

_TABLES = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


def schema_of(path: object) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(str(path))
    try:
        return [tuple(str(cell).strip() for cell in row) for row in connection.execute(_TABLES)]
    finally:
        connection.close()


def test_what_it_prints_makes_the_tables_that_the_engine_makes(shell: Shell) -> None:
    script = shell.run("schema")
    assert script.code == 0
    other = Shell(shell.folder, "made.db")
    connection = sqlite3.connect(other.file)
    for statement in script.out.split(";\n"):  # as a migration runs them, one by one
        connection.execute(statement)
    connection.commit()
    connection.close()
    before = schema_of(other.file)
    assert before == schema_of(shell.file)
    assert len(before) > 10

    async def use(engine: Engine) -> list[bytes]:
        assert engine.driver is not None
        assert engine.outbox is not None
        assert engine.outbox.identity()[1], "the database has an identity of its own"
        await engine.driver.declare([DeclareQueue("jobs")])
        await engine.driver.publish([Publication(False, "jobs", b"1")])
        return [one.body for one in await engine.driver.fetch("jobs", 1, 1.0, 30.0)]

    assert other.on_engine(use) == [b"1"]
    assert schema_of(other.file) == before, "opening had nothing to add"


def test_every_statement_ends_with_its_line_and_nothing_else_does(shell: Shell) -> None:
    for dialect in ("sqlite", "postgresql", "mysql"):
        script = shell.run("schema", "--dialect", dialect, url=False).out
        *statements, rest = script.split(";\n")
        assert rest == ""
        for statement in statements:
            code = [line for line in statement.splitlines() if not line.startswith("--") and line.strip()]
            assert code, statement
            assert code[0].startswith(("CREATE ", "INSERT ", "ALTER ", "UPDATE ", "DROP INDEX ")), statement


def test_schema_and_prefix_of_the_url_are_in_it_and_its_password_is_not(shell: Shell) -> None:
    url = "postgresql://bus:canary@db/shop?schema=Mail&prefix=eb_"
    done = shell.run("schema", "--url", url, url=False)
    assert 'CREATE TABLE "Mail"."eb_message"' in done.out
    assert 'CREATE SCHEMA IF NOT EXISTS "Mail"' in done.out
    assert done.out.startswith("-- easybus at postgresql://bus@db/shop?schema=Mail&prefix=eb_\n")
    assert "canary" not in done.out


def test_an_apps_engines_are_printed_each_once_and_by_dialect(shell: Shell) -> None:
    text = APP.replace('service="shop"', 'service="shop", databases=["postgresql://db/shop", "sqlite:///shop.db"]')
    (shell.folder / "shop.py").write_text(text)
    both = shell.run("schema", "shop:bus", "--json", url=False).json
    assert [each["url"] for each in both] == ["sqlite:///shop.db", "postgresql://db/shop"]
    one = shell.run("schema", "shop:bus", "--json", "--dialect", "postgresql", url=False).json
    assert [each["url"] for each in one] == ["postgresql://db/shop"]
    assert shell.run("schema", "--json", url=False, EASYBUS_APP="shop:bus").json == both


def test_an_update_starts_from_the_version_there_is(shell: Shell) -> None:
    from easybus.engines.sqlite.schema import VERSION

    assert shell.run("schema", "--from", str(VERSION)).out.count("\n") == 1, "up to date: only the heading"
    wrong = shell.run("schema", "--from", str(VERSION + 1))
    assert wrong.code == 1
    assert f"no tables of version {VERSION + 1}" in wrong.err


def test_what_keeps_no_tables_or_is_no_dialect_is_said(shell: Shell) -> None:
    nothing = shell.run("schema", "--url", "memory://", url=False)
    assert (nothing.code, nothing.err) == (1, "easybus: no tables are kept by memory://: there is nothing to make\n")
    wrong = shell.run("schema", "--dialect", "postgres", url=False)
    assert (wrong.code, wrong.err) == (2, "easybus: no dialect 'postgres'; did you mean postgresql?\n")
