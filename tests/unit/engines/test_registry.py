"""URLs that mean something else than they say are refused before any engine reads them, and shown nowhere."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest

from easybus import ConfigurationError
from easybus.clock import SystemClock
from easybus.engines.registry import create

CANARY = "canary7f3a"
URLS = [
    "amqp://user:{}@host:5672/shop",
    "amqps://{}:password@one,two/shop?heartbeat=5",
    "mysql://user:{}@host:3306/shop",
    "nats://user:{}@host:4222",
    "nats://{}@host",
    "tls://{}@one,two?prefix=bus",
    "postgresql://user:{}@host:5432/shop",
    "postgresql://user:{}@one,two:5433/shop?sslmode=require",
    "redis://user:{}@host:6379/0",
    "redis+sentinel://user:{}@one:26379,two/mymaster",
    "rediss://:{}@host",
    "redis+sentinel://one,two/mymaster?sentinel_password={}",
]
PASSWORDS = [
    before + CANARY + behind
    for mark in "/?#"
    for before, behind in [(f"se{mark}", ""), (f"1{mark}", ""), ("", f"{mark}x"), (f"1{mark}a=", ""), (f"@{mark}", "")]
] + [f"12/34?{CANARY}", f"1?prefix={CANARY}", f"1/0?timeout={CANARY}"]


def said(error: BaseException | None) -> Iterator[str]:
    """All that an error, or what it came from, could ever show."""
    while error is not None:
        yield f"{error!r} {error} {''.join(traceback.format_exception(error))}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("url", URLS)
def test_a_password_that_must_be_quoted_is_refused_and_shown_nowhere(url: str, password: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create(url.format(f"{password}@" if url.endswith("{}") else password), SystemClock())
    assert "'/' is %2F, '?' %3F, '#' %23, '@' %40" in str(caught.value)
    assert CANARY not in "".join(said(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        f"redis:user:{CANARY}@host/0",
        f"redis:/user:{CANARY}@host/0",
        f"amqp://user:[{CANARY}@host",
        f"redis://user:[{CANARY}]@host",
        f"nats://user:\N{ACCOUNT OF}{CANARY}@host",
    ],
)
def test_what_is_no_url_is_refused_and_shown_nowhere(url: str) -> None:
    with pytest.raises(ConfigurationError, match="scheme://user:password@host") as caught:
        create(url, SystemClock())
    assert CANARY not in "".join(said(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:a%2Fb%3Fc%23d%40e@one,two:5673/sh%40p?heartbeat=5",
        "mysql://us%40er:a%2Fb@one:3307,two/sh%40p?prefix=a%40b_",
        "nats://a%2Fb%3Fc%23d%40e@one,two:4223?creds=/home/a%40b/file",
        "postgresql://user:a%2Fb@one,two:5433/sh%40p?schema=a%40b&application_name=a%40b",
        "postgresql://user:a%2Fb@%2Fvar%2Frun/shop",
        "redis+sentinel://user:a%2Fb@one,two/mymaster?sentinel_password=a%40b",
        "redis://user:a%2Fb@[::1]:6379/0?prefix=a%40b",
        "sqlite:///a@b/shop.db",
    ],
)
def test_what_is_quoted_is_taken_and_a_file_need_not_be(url: str) -> None:
    assert create(url, SystemClock()).url.partition(":")[0] == url.partition(":")[0]
