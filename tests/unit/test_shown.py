"""Errors of users' code are shown and stored whatever is in them."""

from __future__ import annotations

import pytest

from easybus import PayloadError
from easybus.message import Message
from easybus.payloads import Payloads
from easybus.shown import described


class Mute(Exception):
    """Its text is an error."""

    def __str__(self) -> str:
        raise self


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("no such order"), "ValueError: no such order"),
        (ValueError(), "ValueError"),
        (ValueError("caf\udce9.txt"), "ValueError: caf\\udce9.txt"),
        (Mute("no"), "Mute: <what it says cannot be shown>"),
    ],
    ids=["text", "none", "half a surrogate pair", "raises"],
)
def test_an_error_is_described_as_text_that_every_storage_takes(error: Exception, shown: str) -> None:
    assert described(error) == shown
    assert described(error).encode().decode() == shown


def test_an_upgrade_that_raises_what_cannot_be_shown_is_a_payload_error() -> None:
    def upgrade(value: int) -> str:
        raise Mute

    payloads = Payloads((str,), names={}, type_of=None, upgrade={int: upgrade})
    with pytest.raises(PayloadError, match="upgrade of int failed: Mute: <what it says cannot be shown>"):
        payloads.decode(Message(id="m", payload=b"1", headers={"type": "int"}))
