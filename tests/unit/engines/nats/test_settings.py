"""Streams that an operator has set up: what may be changed, and what would lose messages."""

from __future__ import annotations

from typing import Any

import pytest

from easybus.engines.contract import DeclareQueue
from easybus.engines.nats.driver import NatsDriver
from easybus.errors import DeclaredOtherwise
from easybus.testing.driver_base import topology


async def changed(driver: NatsDriver, queue: str, **settings: Any) -> None:
    """As `nats stream edit` does."""
    stream = driver._names.stream(queue)
    config = (await driver._api.stream_info(stream))["config"]
    await driver._api.request(f"STREAM.UPDATE.{stream}", config | settings)


@pytest.mark.parametrize(("limit", "most"), [("max_bytes", 1_000_000), ("max_msgs", 10), ("max_age", 10**12)])
async def test_a_stream_with_a_limit_at_which_messages_are_thrown_away_is_refused_and_told(
    driver: NatsDriver, limit: str, most: int
) -> None:
    """A server with schedules knows no limit at which it would refuse new messages instead."""
    await topology(driver, ["jobs", "others"])
    await changed(driver, "jobs", **{limit: most})
    with pytest.raises(DeclaredOtherwise, match=rf"throws its oldest messages away at its limit \({limit}\): take"):
        await driver.declare([DeclareQueue("jobs")])
    await driver.declare([DeclareQueue("others")])
    (told,) = await driver.durability()
    assert driver._names.stream("jobs") in told
    assert f"({limit})" in told
    await changed(driver, "jobs", **{limit: 0 if limit == "max_age" else -1})
    await driver.declare([DeclareQueue("jobs")])
    assert await driver.durability() == []


async def test_other_settings_of_an_operator_stay(driver: NatsDriver) -> None:
    await topology(driver, ["jobs"])
    await changed(driver, "jobs", max_msg_size=5000, description="the shop's")
    await driver.declare([DeclareQueue("jobs")])
    config = (await driver._api.stream_info(driver._names.stream("jobs")))["config"]
    assert (config["max_msg_size"], config["description"]) == (5000, "the shop's")


async def test_a_stream_of_another_program_under_our_name_is_refused(driver: NatsDriver) -> None:
    stream = driver._names.stream("jobs")
    await driver._api.request(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": ["theirs"], "storage": "file"})
    with pytest.raises(DeclaredOtherwise, match=r"none of easybus': delete it, or write \?prefix="):
        await driver.declare([DeclareQueue("jobs")])
