"""What reaches a terminal, and what does not."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easybus import shown
from easybus.cli.output import Misused, ago, close_to, duration
from easybus.shown import hidden, hide, visible, visible_bytes


@given(st.text())
def test_no_control_character_of_foreign_text_reaches_the_terminal(text: str) -> None:
    assert [char for char in visible(text) if unicodedata.category(char)[0] == "C"] == []


@given(st.binary())
def test_no_control_byte_of_a_payload_reaches_the_terminal(data: bytes) -> None:
    shown = visible_bytes(data)
    assert [char for char in shown if unicodedata.category(char)[0] == "C" and char != "\n"] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\tb\r\n", "a\\tb\\r\\n"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("[red]grüße[/red] ✈", "[red]grüße[/red] ✈"),
    ],
)
def test_control_characters_are_shown_escaped_and_everything_else_as_it_is(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_is_laid_out_and_keeps_its_numbers() -> None:
    assert visible_bytes(b'{"n":10000000000000000000000000001,"f":1.10}') == (
        '{\n  "n": 10000000000000000000000000001,\n  "f": 1.10\n}'
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://shop:s3cret@host/v", "amqp://shop:***@host/v"),
        ("redis://:s3cret@host", "redis://:***@host"),
        ("x://h/?password=s3cret&a=1", "x://h/?password=***&a=1"),
        ("x://h/?a=1&sentinel_password=s3cret", "x://h/?a=1&sentinel_password=***"),
        ("amqp://shop:a/s3cret?x@host/v", "amqp://***@host/v"),
        ("nats://s3cret#x@host", "nats://***@host"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("https://shop.example/?mail=a@b.example", "https://shop.example/?mail=a@b.example"),
    ],
)
def test_passwords_of_urls_are_hidden(text: str, shown: str) -> None:
    assert hidden(f"cannot reach {text} now") == f"cannot reach {shown} now"


@pytest.mark.parametrize("password", ["s3cret", "a/s3cret", "1?s3cret", "#s3cret", "s3cret@x", "[s3cret", "s3c%72et"])
def test_the_password_of_a_url_that_was_given_is_hidden_wherever_it_is_quoted(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "_passwords", set())
    hide(f"redis://shop:{password}@host/0")
    assert hidden(f"cannot log in with {password}") == "cannot log in with ***"
    assert hidden("cannot find host/0 for shop") == "cannot find host/0 for shop"


def test_a_wrong_name_is_answered_with_close_ones() -> None:
    assert close_to("emial", ["emails", "receipts"], "queues") == "did you mean emails?"
    assert close_to("zzz", ["emails", "receipts"], "queues") == "there are the queues emails, receipts"
    assert close_to("zzz", [], "queues") == "there are no queues"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("7d", 604_800), ("1w", 604_800)]
)
def test_lengths_of_time_have_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2 hours", "-5m", "1e9"])
def test_what_is_no_length_of_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(Misused, match="write 30s, 5m, 2h or 7d"):
        duration(text)


def test_moments_are_told_in_the_largest_unit_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["easybus.cli.output"].time, "time", lambda: 1_000_000.0)
    assert [ago(1_000_000 - passed) for passed in (5, 300, 7200, 259_200, -30)] == [
        "5s ago",
        "5m ago",
        "2h ago",
        "3d ago",
        "in 30s",
    ]
