"""URLs: what they say, what is refused, and that no password is ever shown."""

import pytest

from easybus.clock import SystemClock
from easybus.engines.redis.location import locate
from easybus.engines.registry import create
from easybus.errors import ConfigurationError

CANARY = "canary-77"


def test_a_server_with_account_database_and_options() -> None:
    found = locate(f"redis://shop:{CANARY}%40@db.example:6380/3?prefix=shop&timeout=2.5&eviction=accept")
    assert found.hosts == (("db.example", 6380),)
    assert (found.username, found.password, found.database) == ("shop", f"{CANARY}@", 3)
    assert (found.prefix, found.timeout, found.accept_eviction, found.tls) == ("shop", 2.5, True, None)
    assert (locate("redis://localhost").prefix, locate("redis://[::1]").hosts) == ("easybus", (("::1", 6379),))


def test_a_password_is_in_no_url_and_no_repr() -> None:
    url = f"redis+sentinel://:{CANARY}@a,b/mymaster?sentinel_password={CANARY}&prefix=p"
    found = locate(url)
    assert (found.password, found.sentinel_password) == (CANARY, CANARY)
    assert CANARY not in repr(found)
    assert found.url == "redis+sentinel://a,b/mymaster?prefix=p"
    assert CANARY not in create(url, SystemClock()).url


def test_several_sentinels_name_one_master() -> None:
    found = locate("redis+sentinel://a:1,b,[::1]:3/mymaster/2")
    assert found.hosts == (("a", 1), ("b", 26379), ("::1", 3))
    assert (found.service, found.database) == ("mymaster", 2)


def test_tls_checks_the_servers_name_unless_told_otherwise() -> None:
    assert locate("rediss://h").tls == {"ssl_check_hostname": True}
    assert locate("rediss://h?ca=/ca.pem&cert=/c&key=/k").tls == {
        "ssl_check_hostname": True,
        "ssl_ca_certs": "/ca.pem",
        "ssl_certfile": "/c",
        "ssl_keyfile": "/k",
    }
    assert locate("rediss://h?verify=none").tls == {"ssl_check_hostname": False, "ssl_cert_reqs": "none"}
    assert locate("rediss+sentinel://h/m?verify=ca").tls == {"ssl_check_hostname": False, "ssl_cert_reqs": "required"}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "the host is missing"),
        ("redis://a,b", "several hosts are for Sentinel"),
        ("redis+sentinel://a,b", "the name that Sentinel knows"),
        ("redis://a/jobs", "a database is a number"),
        ("redis://a:port", "is no host"),
        ("redis://a#1", "must be written %23"),
        ("redis://a?perfix=x", "unknown option perfix=x; there are prefix=shop"),
        ("redis://a?timeout=soon", "unknown option timeout=soon"),
        ("redis://a?ca=/x", "unknown option ca=/x"),
        ("redis://a?replicas=all", "unknown option replicas=all; there are prefix=shop, timeout=5, replicas=1"),
        ("redis://a?eviction=maybe", "unknown option eviction=maybe"),
        (f"redis://a?sentinel_password={CANARY}", "unknown option sentinel_password=…"),
    ],
)
def test_what_is_wrong_is_refused_with_what_to_write(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        locate(url.replace("://", f"://u:{CANARY}@"))
    assert says in str(raised.value)
    assert CANARY not in str(raised.value)
