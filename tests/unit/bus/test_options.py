"""What a send may be told, and what may be a handler."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pydantic
import pytest

from easybus import Bus, ConfigurationError, Message, Outgoing, PayloadError, Queue, Router, Topic, fixed, never


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
        ({"id": "a\ud800"}, r"id='a\ud800' holds half a surrogate pair, which no UTF-8 text can: write 'a?'"),
        ({"route_key": "\udcff.é"}, r"route_key='\udcff.é' holds half a surrogate pair"),
        ({"headers": {"tenant": "\udc00"}}, r"tenant='\udc00' holds half a surrogate pair"),
        ({"headers": {"\udc00": "tenant"}}, r"'\udc00' holds half a surrogate pair"),
        ({"at": "2026-01-01"}, "at='2026-01-01'; it is a datetime with a time zone, such as datetime(..., tzinfo=UTC)"),
        ({"at": date(2026, 1, 1)}, "at=datetime.date(2026, 1, 1); it is a datetime with"),
        ({"at": 1767225600}, "at=1767225600; it is a datetime with"),
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


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message(id=7), "id=7 is no text: write id='7'"),  # type: ignore[arg-type]
        (Message(id="\ud800"), r"id='\ud800' holds half a surrogate pair"),
        (Message(id="m", headers={"tenant": "\udc00"}), r"tenant='\udc00' holds half a surrogate pair"),
    ],
)
async def test_a_message_that_no_handler_could_read_is_refused_too(message: Message, says: str) -> None:
    bus = Bus("memory://")
    numbers = bus.queue("numbers", int)
    async with bus:
        with pytest.raises(ConfigurationError, match=re.escape(says)):
            await numbers.send(message)
        await numbers.send(Message(id="é", payload=b"1", route_key="😀"))
        assert (await bus.driver.stats("numbers")).ready == 1


def test_a_topic_has_no_delay_of_its_own_and_a_queue_has() -> None:
    with pytest.raises(TypeError, match="Topic has no option delay"):
        Topic("events", int, delay=5)  # type: ignore[call-overload]
    assert Queue("jobs", int, delay=5).delay == 5


def test_a_retry_that_is_no_policy_is_an_error_where_it_is_written() -> None:
    jobs = Bus("memory://").queue("jobs", int)
    with pytest.raises(ConfigurationError, match="retry=3; it is a policy"):
        jobs.handler(retry=3)  # type: ignore[call-overload]


async def test_functions_that_share_a_queue_may_each_write_the_same_settings_and_no_others() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", int, str, float)
    done: list[int | str] = []

    @jobs.handler(int, retry=fixed(5, attempts=3))
    def count(job: int) -> None:
        done.append(job)

    @jobs.handler(str, retry=fixed(5, attempts=3))
    def name(job: str) -> None:
        done.append(job)

    async with bus.testing() as t:
        await jobs.send_many([1, "one"])
        await t.drain()
    assert sorted(done, key=str) == [1, "one"]

    @jobs.handler(float, retry=fixed(5, attempts=4))
    def weigh(job: float) -> None: ...

    with pytest.raises(ConfigurationError, match=re.escape("=fixed(5, attempts=3) and retry=fixed(5, attempts=4)")):
        async with bus.testing():
            pass


async def test_a_coroutine_function_in_plain_wrapping_is_awaited() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", int)
    done: list[int] = []

    async def work(number: int) -> bool:
        await asyncio.sleep(0)
        done.append(number)
        return number != 2

    def logged(function: Callable[[int], Any]) -> Callable[[int], Any]:
        def wrapper(number: int) -> Any:
            return function(number)

        return wrapper

    jobs.handler(retry=never())(logged(work))
    async with bus.testing() as t:
        await jobs.send_many([1, 2])
        await t.drain()
        assert sorted(done) == [1, 2]
        assert len(t.dead("jobs")) == 1, "what it returned counts too"


@pytest.mark.parametrize("sync", [True, False])
async def test_a_generator_is_no_handler_since_its_body_would_never_run(sync: bool) -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", int)

    def plain(number: int) -> Iterator[int]:
        yield number

    async def with_await(number: int) -> AsyncIterator[int]:
        yield number

    jobs.handler()(plain if sync else with_await)
    with pytest.raises(ConfigurationError, match="is a generator"):
        async with bus.testing():
            pass


async def test_a_handler_that_would_never_run_is_refused_where_it_is_added() -> None:
    bus = Bus("memory://")
    jobs = bus.queue("jobs", int)
    done: list[int] = []
    async with bus:
        jobs.handler()(done.append)  # in time: it does not handle yet
        async with bus.handling():
            with pytest.raises(ConfigurationError, match="would never run"):
                jobs.handler()
            with pytest.raises(ConfigurationError, match="would never run"):
                bus.include(Router())
            await jobs.send(1)
            while not done:
                await asyncio.sleep(0.001)


async def test_a_pydantic_model_that_became_wrong_is_refused_before_it_is_sent() -> None:
    class Email(pydantic.BaseModel):
        to: str
        copies: int = 0

    bus = Bus("memory://")
    emails = bus.queue("emails", Email)
    email = Email(to="ann")
    async with bus:
        await emails.send(email)
        email.copies = "many"  # type: ignore[assignment]
        with pytest.raises(PayloadError, match="copies"):
            await emails.send(email)
        assert (await bus.driver.stats("emails")).ready == 1


async def test_a_pydantic_model_goes_under_its_aliases_as_it_is_read() -> None:
    class User(pydantic.BaseModel):
        id: str = pydantic.Field(alias="Id")

    bus = Bus("memory://")
    users = bus.queue("users", User)
    seen: list[User] = []
    users.handler()(seen.append)
    async with bus.testing() as t:
        message = await users.send(User(Id="u1"))
        await t.drain()
        assert message.decode(dict) == {"Id": "u1"}
        assert seen == [User(Id="u1")]
