"""Route keys and patterns, held to a reference that is slow and plain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easybus.routing import Routes, matches

words = st.lists(st.sampled_from(["a", "b", "*", "#", "", "é", "a*", "##"]), max_size=6).map(".".join)
keys = st.lists(st.sampled_from(["a", "b", "", "é", "a*", "*", "#"]), max_size=6).map(".".join)


def reference(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(reference(pattern[1:], key[at:]) for at in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and reference(pattern[1:], key[1:])


def split(text: str) -> list[str]:
    return text.split(".") if text else []


@given(words, keys)
def test_every_pattern_matches_what_the_reference_matches(pattern: str, key: str) -> None:
    assert matches(pattern, key) == reference(split(pattern), split(key))


@given(st.lists(st.tuples(st.sampled_from(["q1", "q2", "q3"]), words), max_size=8), st.lists(keys, max_size=4))
def test_routes_reach_each_matching_queue_once_in_order_of_binding(
    bindings: list[tuple[str, str]], asked: list[str]
) -> None:
    routes = Routes(bindings)
    for key in asked + asked:  # the second time from what it remembers
        reached = [queue for queue, pattern in bindings if reference(split(pattern), split(key))]
        assert list(routes.queues(key)) == list(dict.fromkeys(reached))


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("", "", True),
        ("", "a", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("*", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("*.*", ".", True),  # a dot stands between two empty words
        ("*", ".", False),
        ("a.#", "a", True),
        ("a.#", "a.", True),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("a.#.b", "a.x.y", False),
        ("#.#", "", True),
        ("a", "A", False),
        ("a*", "ab", False),  # a star within a word is a letter
        ("é", "e\u0301", False),
    ],
)
def test_patterns_are_those_of_amqp(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


def test_many_hashes_do_not_explode() -> None:
    assert not matches(".".join(["#", "a"] * 60), ".".join(["a"] * 59 + ["b"]))


def test_routes_remember_a_bounded_number_of_keys() -> None:
    routes = Routes([("q", "#")])
    for at in range(25_000):
        assert routes.queues(str(at)) == ("q",)
    assert len(routes._cache) <= 10_000
