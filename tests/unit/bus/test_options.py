"""What a send may be told."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from easybus import Bus, ConfigurationError, Outgoing, Queue, Topic


async def test_a_misspelt_option_of_a_send_is_an_error_and_nothing_is_sent():
    bus = Bus("memory://")
    numbers = bus.queue("numbers", int)
    async with bus:
        with pytest.raises(TypeError, match="dealy"):
            await numbers.send(1, dealy=60)  # type: ignore[call-arg]
        await numbers.send(2, id="two", headers={"a": "b"}, delay=None)
        stats = await bus.driver.stats("numbers")
    assert stats.ready == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id": 7}, "id=7 is no text: write id='7'"),
        ({"id": 0}, "id=0 is no text"),
        ({"route_key": 7}, "route_key=7 is no text"),
        ({"headers": {"tenant": 7}}, "tenant=7 is no text"),
        ({"headers": {7: "tenant"}}, "7=7 is no text"),
        ({"delay": "60"}, "delay='60'; it is a number of seconds"),
        ({"delay": timedelta(minutes=1)}, "it is a number of seconds"),
    ],
)
async def test_what_no_handler_could_read_is_refused_before_it_is_sent(options: dict[str, Any], says: str) -> None:
    bus = Bus("memory://")
    numbers = bus.queue("numbers", int)
    async with bus:
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            await numbers.send(1, **options)
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            await numbers.send_many([Outgoing(1, **options)])
        assert (await bus.driver.stats("numbers")).ready == 0


def test_a_topic_has_no_delay_of_its_own_and_a_queue_has() -> None:
    with pytest.raises(TypeError, match="Topic has no option delay"):
        Topic("events", int, delay=5)  # type: ignore[call-overload]
    assert Queue("jobs", int, delay=5).delay == 5


def test_a_retry_that_is_no_policy_is_an_error_where_it_is_written() -> None:
    jobs = Bus("memory://").queue("jobs", int)
    with pytest.raises(ConfigurationError, match="retry=3; it is a policy"):
        jobs.handler(retry=3)  # type: ignore[call-overload]
