"""Route keys and patterns: AMQP topic patterns, the same on every engine.

Words are split by `.`; `*` is exactly one word, `#` zero or more. The empty key has no words, an empty word between
two dots is a word. No pattern given means `#`; the empty pattern matches only the empty key.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

__all__ = ["Routes", "matches"]

_MAX_CACHED = 10_000


def _words(text: str) -> list[str]:
    return text.split(".") if text else []


@lru_cache(maxsize=4096)
def _pattern_words(pattern: str) -> tuple[str, ...]:
    return tuple(_words(pattern))


def matches(pattern: str, key: str) -> bool:
    """Whether `pattern` matches `key`: the reference that every engine is held to."""
    pattern_words = _pattern_words(pattern)
    key_words = _words(key)
    # The set of positions in the pattern that the key read so far can have reached.
    positions = _past_hashes(pattern_words, {0})
    for word in key_words:
        step: set[int] = set()
        for at in positions:
            if at < len(pattern_words):
                expected = pattern_words[at]
                if expected == "#":
                    step.add(at)
                elif expected == "*" or expected == word:
                    step.add(at + 1)
        positions = _past_hashes(pattern_words, step)
        if not positions:
            return False
    return len(pattern_words) in positions


def _past_hashes(words: tuple[str, ...], positions: set[int]) -> set[int]:
    """These positions, and those behind a `#` that matches nothing more."""
    found = set(positions)
    for at in positions:
        while at < len(words) and words[at] == "#":
            at += 1
            found.add(at)
    return found


class Routes:
    """The bindings of one topic, and the queues that a key reaches; each queue once, in order of binding."""

    def __init__(self, bindings: Iterable[tuple[str, str]] = ()) -> None:
        """`bindings`: pairs of queue and pattern."""
        self._bindings = list(dict.fromkeys(bindings))
        self._cache: dict[str, tuple[str, ...]] = {}

    def queues(self, key: str) -> tuple[str, ...]:
        """The queues that `key` reaches."""
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            found = tuple(dict.fromkeys(queue for queue, pattern in self._bindings if matches(pattern, key)))
            self._cache[key] = found
        return found
