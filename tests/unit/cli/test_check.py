"""`easybus check`: tables for a person, JSON for a pipeline, and the exit code."""

from __future__ import annotations

import json

import pytest

from easybus.engines.sqlite import location

from .conftest import Shell
from .test_run import APP


@pytest.fixture
def app(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr(location, "_file_system", lambda _: "ext4")
    (shell.folder / "shop.py").write_text(APP)
    return shell


def test_a_sound_app_exits_with_0_and_shows_its_promises(app: Shell) -> None:
    done = app.run("check", "shop:bus", "--rate", "20", url=False)
    assert done.code == 0, done.out
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "topic orders send once confirmed, never lost in the queues bound by then" in lines
    assert "queue emails at least once; copies are recognised for 1 day" in lines
    assert any(line.startswith("queue emails 1 day 1,728,000 8 attempts") for line in lines)
    assert lines[-1] == "no contradictions"


def test_a_contradiction_exits_with_1_and_says_what_to_write(app: Shell) -> None:
    (app.folder / "shop.py").write_text(APP.replace("sqlite:///shop.db", "memory://"))
    done = app.run("check", "shop:bus", url=False)
    assert done.code == 1
    assert "1 contradiction:\n- memory://: it keeps nothing" in done.out
    assert "no contradictions" not in done.out
    as_json = app.run("check", "shop:bus", "--json", "--offline", url=False)
    assert as_json.code == 1
    report = json.loads(as_json.out)
    assert (report["ok"], [one["where"] for one in report["contradictions"]]) == (False, ["memory://"])
    assert {one["how"] for one in report["guarantees"]} == {"send", "handle"}


def test_offline_connects_to_nothing_and_passwords_stay_unseen(app: Shell) -> None:
    url = "postgresql://bus:canary@127.0.0.1:9/shop"
    (app.folder / "shop.py").write_text(APP.replace("sqlite:///shop.db", url))
    done = app.run("check", "shop:bus", "--offline", url=False)
    assert done.code == 0, done.out
    assert "not connected" in done.out
    online = app.run("check", "shop:bus", url=False)
    assert online.code == 1
    assert "postgresql://bus@127.0.0.1:9/shop: it cannot be opened" in online.out
    assert "canary" not in done.out + done.err + online.out + online.err


def test_a_narrow_terminal_still_shows_every_promise(app: Shell) -> None:
    done = app.run("check", "shop:bus", url=False, COLUMNS="60")
    assert "recognised" in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("- ")) <= 60
