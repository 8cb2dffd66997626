"""What a nats:// URL says, and how it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easybus.clock import SystemClock
from easybus.engines.nats.address import parse
from easybus.engines.nats.names import CAPABILITIES, encoded, message_id
from easybus.engines.registry import create
from easybus.errors import BadName, ConfigurationError

CANARY = "canary-5c1d"


def test_hosts_options_and_login_are_read() -> None:
    address = parse("nats://me:se%40cret@one:4223,two?prefix=shop&replicas=3&timeout=2.5&heartbeat=1")
    assert address.hosts == ("nats://one:4223", "nats://two:4222")
    assert (address.prefix, address.replicas, address.timeout, address.heartbeat) == ("shop", 3, 2.5, 1.0)
    assert address.login == {"user": "me", "password": "se@cret"}
    assert parse("nats://token@one").login == {"token": "token"}
    named = parse("nats://one?creds=/a&nkey=/b")
    assert (named.creds, named.nkey, named.login) == ("/a", "/b", {})
    assert "tls" in parse("tls://one").login


@pytest.mark.parametrize("url", [f"nats://me:{CANARY}@one", f"nats://{CANARY}@one", f"tls://me:{CANARY}@one,two"])
def test_a_password_or_token_is_shown_nowhere(url: str) -> None:
    engine = create(url, SystemClock())
    assert CANARY not in engine.url + repr(engine) + repr(parse(url))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"nats://me:{CANARY}@", "no host"),
        (f"nats://me:{CANARY}@one:port", "wrong port"),
        (f"nats://me:{CANARY}@x@one", "%40"),
        (f"nats://me:{CANARY}@one/path", "no path"),
        (f"nats://me:{CANARY}@one?colour=red", "unknown option"),
        (f"nats://me:{CANARY}@one?prefix=a.b", "prefix"),
        (f"nats://me:{CANARY}@one?prefix=KV", "prefix"),
        (f"nats://me:{CANARY}@one?replicas=many", "replicas"),
        (f"tls://me:{CANARY}@one?tls_ca=/not/there", "TLS"),
    ],
)
def test_a_wrong_url_says_what_is_allowed_and_no_password(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        create(url, SystemClock())
    assert CANARY not in str(raised.value)


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
def test_names_become_words_that_nats_takes_and_none_collide(names: list[str]) -> None:
    held = []
    for name in names:
        try:
            held.append(encoded(name))
        except BadName:
            return
    assert held[0] != held[1]
    for word in held:
        assert word.isascii()
        assert not set(word) & set(" .*>/\\\t\r\n")
        assert len(word) <= 201


def test_the_longest_name_of_any_bytes_is_held() -> None:
    assert len(encoded("." * CAPABILITIES.max_name)) <= 201
    assert encoded("." * CAPABILITIES.max_name) != encoded("." * (CAPABILITIES.max_name - 1))


@given(st.lists(st.text(max_size=400), min_size=2, max_size=2, unique=True))
def test_two_ids_are_never_one_to_the_duplicate_filter(ids: list[str]) -> None:
    first, second = (message_id(one, b"same") for one in ids)
    assert first != second
    assert first.strip() == first
    assert "/" not in first  # a move's id has two
