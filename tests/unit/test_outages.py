"""One log line down and one up, however many loops of a bus its server's outage cuts off."""

from __future__ import annotations

import logging

import pytest

from easybus.outages import Outage, Outages


def test_it_is_said_once_when_the_first_is_down_and_once_when_the_last_is_up(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages(logging.getLogger("easybus"))
    one, two, three = (Outage(what, outages) for what in ("one", "two", "three"))
    with caplog.at_level(logging.WARNING, "easybus"):
        assert [one.failed(OSError("refused")), two.failed(OSError("other")), one.failed(OSError("refused"))] == [
            0.1, 0.1, 0.2,
        ]  # fmt: skip
        one.over()
        three.over()
        assert [record.getMessage() for record in caplog.records] == [
            "one: down, trying again until it is up: OSError: refused"
        ]
        two.over()
        assert caplog.records[1].getMessage() == "two: up again"
        one.failed(OSError("refused"))
        one.ended()
        two.failed(OSError("again"))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["one", "two", "one", "two"]


def test_pauses_grow_to_the_longest_and_begin_anew() -> None:
    outage = Outage("it", Outages(logging.getLogger("easybus.silent")), longest_pause=0.3)
    assert [outage.failed(OSError()) for _ in range(4)] == [0.1, 0.2, 0.3, 0.3]
    outage.over()
    assert outage.failed(OSError()) == 0.1
