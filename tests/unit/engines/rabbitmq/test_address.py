"""URLs, and the names and delays that are made for RabbitMQ; no server needed."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easybus.engines.rabbitmq.address import parse
from easybus.engines.rabbitmq.delays import LEVELS, bits, bits_of, milliseconds
from easybus.engines.rabbitmq.names import CAPABILITIES, encoded
from easybus.errors import BadName, ConfigurationError

CANARY = "canary-5e1c"


def test_a_url_names_hosts_user_virtual_host_and_options_and_hides_the_password() -> None:
    address = parse(f"amqp://me:{CANARY}@one,two:5673,[::1]:7/my%2Fvhost?heartbeat=3&timeout=2")
    assert address.hosts == (("one", 5672), ("two", 5673), ("::1", 7))
    assert (address.user, address.password, address.vhost) == ("me", CANARY, "my/vhost")
    assert (address.heartbeat, address.timeout, address.tls) == (3, 2.0, None)
    assert CANARY not in address.url + repr(address)
    assert "me@one,two:5673" in address.url


def test_what_a_url_leaves_out_is_as_the_server_has_it() -> None:
    address = parse("amqp://")
    assert (address.hosts, address.user, address.vhost) == ((("localhost", 5672),), "guest", "/")


def test_tls_verifies_unless_it_is_told_not_to() -> None:
    verified, blind = parse("amqps://host").tls, parse("amqps://host?verify=no").tls
    assert parse("amqps://host").hosts == (("host", 5671),)
    assert verified is not None
    assert (verified.verify_mode, verified.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert blind is not None
    assert blind.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://me:{CANARY}@host:port",
        f"amqp://me:{CANARY}@host:70000",
        f"amqp://me:{CANARY}@one,,two",
        f"amqp://me:{CANARY}@host?hartbeat=1",
        f"amqp://me:{CANARY}@host?heartbeat=soon",
        f"amqp://me:{CANARY}@host?heartbeat=0",
        f"amqp://me:{CANARY}@host?cafile=/etc/ca.pem",
        f"amqps://me:{CANARY}@host?verify=maybe",
        f"amqps://me:{CANARY}@host?cafile=/not/there.pem",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert CANARY not in str(caught.value)


def test_a_name_is_the_users_own_wherever_rabbitmq_can_hold_it() -> None:
    for name in ("orders", "a.b", "snow☃", "50%", "%41", "a b", "easybus", "amq"):
        assert encoded(name, "a queue") == name


@given(st.lists(st.text("amq.ebsyu:%0ADd2561\r\n", min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
def test_no_two_names_collide_and_none_is_one_that_the_server_or_we_keep(names: list[str]) -> None:
    first, second = (encoded(name, "a queue") for name in names)
    assert first != second
    for held in (first, second):
        assert not held.startswith(("amq.", "easybus:"))
        assert "\r" not in held
        assert "\n" not in held


def test_a_name_that_is_too_long_once_encoded_is_refused() -> None:
    assert encoded("x" * CAPABILITIES.max_name, "a queue")
    for name in ("x" * (CAPABILITIES.max_name + 1), "\n" * 100):
        with pytest.raises(BadName):
            encoded(name, "a queue")


@given(st.floats(0.0001, CAPABILITIES.max_delay))
def test_a_delay_is_never_rounded_down_and_hardly_up(delay: float) -> None:
    number = milliseconds(delay)
    hops = len(bits_of(number))
    assert number >= delay * 1000
    # Each hop may end a millisecond early, and 5 ms in all are allowed.
    assert number - hops >= delay * 1000 - 5
    assert number <= delay * 1000 + max(80, delay * 1.01) + 10
    assert hops <= 14
    assert number < 1 << LEVELS
    assert [LEVELS - 1 - at for at, bit in enumerate(bits(number).split(".")) if bit == "1"][::-1] == bits_of(number)
