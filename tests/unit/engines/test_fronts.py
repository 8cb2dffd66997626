"""Where a fetch may begin, and when it looks back."""

from __future__ import annotations

import asyncio

import pytest

from easybus.engines.fronts import Fronts


async def test_a_fetch_begins_where_the_last_full_one_ended_and_looks_back_four_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fronts: Fronts[str] = Fronts()
    seconds = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: seconds)
    assert fronts.since(1) is None
    fronts.reached(1, "b", None)
    seconds = 100.2
    assert fronts.since(1) == "b"
    fronts.reached(1, "d", "b")
    assert (fronts.since(1), fronts.since(2)) == ("d", None)
    seconds = 100.3  # however often it went on meanwhile
    assert fronts.since(1) is None
    fronts.reached(1, "e", None)
    assert fronts.since(1) == "e"
    monkeypatch.undo()


async def test_a_fetch_that_found_less_than_it_asked_for_is_followed_by_one_that_looks_back() -> None:
    fronts: Fronts[str] = Fronts()
    fronts.reached(1, "b", None)
    fronts.reached(1, None, "b")
    assert fronts.since(1) is None
