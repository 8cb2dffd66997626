"""`easybus relay`: committed messages are published by a process that handles nothing."""

from __future__ import annotations

import signal

import apsw
import pytest

from easybus.engines.contract import Engine, Publication

from .conftest import Shell
from .test_run import APP, handled, until


@pytest.fixture
def app(shell: Shell) -> Shell:
    (shell.folder / "shop.py").write_text(APP)
    assert shell.run("declare", "shop:bus", url=False).code == 0
    return shell


async def commit(engine: Engine) -> None:
    """Three messages in one transaction, by a process that relays nothing."""
    assert engine.outbox is not None
    transaction = engine.transaction(apsw.Connection)
    assert transaction is not None
    batch = [Publication(False, "emails", b"1"), Publication(False, "emails", b"2"), Publication(True, "orders", b"3")]
    async with transaction as connection:
        for statement, values in engine.outbox.statements("shop", batch):
            connection.execute(statement, values)


def ready(app: Shell) -> dict[str, int]:
    return {each["queue"]: each["ready"] for each in app.run("queues", "--json").json}


def test_what_transactions_commit_is_published_and_told_and_nothing_is_handled(app: Shell) -> None:
    with app.spawn("relay", "shop:bus") as process:
        try:
            app.on_engine(commit)
            until(lambda: ready(app)["emails"] == 2 and ready(app)["totals"] == 1, "all three are published")
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            told = next(line for line in lines if "published" in line)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "published from sqlite:///shop.db: 2 to queue:emails, 1 to orders" in told
    assert "Traceback" not in err
    assert handled(app) == []


def test_what_was_published_last_is_told_before_the_end(app: Shell) -> None:
    app.on_engine(commit)
    with app.spawn("relay", "shop:bus") as process:
        try:
            until(lambda: ready(app)["totals"] == 1, "all are published")
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, err
    counts = [
        int(word) for line in err.splitlines() if "published from" in line for word in line.split() if word in "12"
    ]
    assert sum(counts) == 3


def test_an_app_that_leaves_nothing_to_relay_is_told_so(app: Shell) -> None:
    (app.folder / "alone.py").write_text('from easybus.bus import Bus\nbus = Bus("memory://")\n')
    done = app.process("relay", "alone:bus")
    assert done.code == 1
    assert "alone:bus leaves nothing to relay" in done.err
