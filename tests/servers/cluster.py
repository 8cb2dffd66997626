"""Private clusters for tests: several servers of one kind, whose leader may be killed and frozen.

    whole → kill_leader | freeze_leader: hurt, another leads → heal: whole, the hurt node follows

`fixtures.py` makes one of each for the test session; a test that asks for one finds it whole.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from . import Server

__all__ = ["Cluster", "all_at_once", "until"]

PATIENCE = 60.0
"""Seconds that a cluster may take to agree on something."""


class Cluster(ABC):
    """Blocking calls: from async tests, `await asyncio.to_thread(...)`."""

    nodes: Sequence[Server]
    hurt_at = hurt_until = 0.0
    """When the leader was about to be killed or frozen last, and when it was so, in seconds since 1970."""
    _started = False

    def start(self) -> None:
        """Make it whole, whatever was done to it."""
        if self._started:
            self.heal()
        else:
            self.begin()
            self._started = True
        until(self.whole, f"{type(self).__name__} is not whole")

    @abstractmethod
    def begin(self) -> None:
        """The first start."""

    @abstractmethod
    def leader(self) -> Server:
        """Who leads the queue that tests use, `jobs`, or all of it."""

    @abstractmethod
    def whole(self) -> bool:
        """Whether every node is there and has caught up."""

    def kill_leader(self) -> Server:
        """SIGKILL to it, and what an operator or the cluster's own watchman does then."""
        return self._hurt(Server.kill)

    def freeze_leader(self) -> Server:
        """SIGSTOP to it, likewise."""
        return self._hurt(Server.freeze)

    def _hurt(self, hurt: Callable[[Server], None]) -> Server:
        leader = self.leader()
        self.hurt_at = time.time()
        hurt(leader)
        self.hurt_until = time.time()
        return leader

    def heal(self) -> None:
        """Thaw and start what was hurt, and wait until all is whole."""
        for node in self.nodes:
            node.thaw()
        all_at_once([node.start for node in self.nodes])
        until(self.whole, f"{type(self).__name__} does not heal")

    def remove(self) -> None:
        """Kill all of it, and delete its folders."""
        for node in self.nodes:
            node.remove()


def until(condition: Callable[[], object], otherwise: str, seconds: float = PATIENCE) -> None:
    """Wait until it holds; an error counts as no."""
    deadline = time.monotonic() + seconds
    why: Exception | None = None
    while True:
        try:
            if condition():
                return
            why = None
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            why = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {seconds:.0f} s") from why
        time.sleep(0.1)


def all_at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Do these side by side, and raise what one of them raises."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
