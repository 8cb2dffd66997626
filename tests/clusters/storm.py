"""Senders and handlers in processes of their own, while a cluster's leader is killed and frozen under them.

    start → blow (kill | freeze, recover, heal) … → end: every confirmed job is handled, or is named as lost

A blow's recovery is the time from the signal to the moment when a job is handled that was first sent after the leader
was gone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.cluster import Cluster, until

WORKER = Path(__file__).with_name("worker.py")
RECOVERY = 15.0
"""Seconds in which a job is handled again."""
_SENDERS, _HANDLERS = 2, 2
_DRAIN = 60.0


@dataclass
class Found:
    """What a storm has shown."""

    kills: int = 0
    freezes: int = 0
    confirmed: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: dict[str, int] = field(default_factory=dict)
    recoveries: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        times = ", ".join(f"{seconds:.1f}" for seconds in self.recoveries)
        return (
            f"{self.kills} kills, {self.freezes} freezes, {self.confirmed} confirmed, {len(self.lost)} lost, "
            f"{len(self.doubled)} doubled; recovered after {times} s"
        )


class Storm:
    """One cluster's. `handler`: the worker's role."""

    def __init__(self, cluster: Cluster, folder: Path, url: str, storage: str = "", handler: str = "handle") -> None:
        self.found = Found()
        self._cluster = cluster
        self._folder = folder
        self._url = url
        self._storage = storage
        self._handler = handler
        self._senders: list[subprocess.Popen[bytes]] = []
        self._handlers: list[subprocess.Popen[bytes]] = []

    def worker(self, role: str, name: str) -> subprocess.Popen[bytes]:
        """Start one."""
        with open(self._folder / f"{name}.err", "ab") as errors:
            command = [sys.executable, str(WORKER), role, name, str(self._folder), self._url, self._storage]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)

    def start(self) -> None:
        """Start the processes, and wait until jobs are handled and the cluster has all of it."""
        began = time.time()
        self._handlers = [self.worker(self._handler, f"handler{at}") for at in range(_HANDLERS)]
        self._senders = [self.worker("send", f"sender{at}") for at in range(_SENDERS)]
        until(lambda: len(self._lines("open")) == _HANDLERS + _SENDERS, "not all processes are open")
        self._wait_for_a_job_sent_after(began, 60.0)
        until(self._cluster.whole, "the cluster is not whole under load")

    def blow(self, kind: str) -> None:
        """Hurt the leader, see work go on, and heal it."""
        hurt = self._cluster.kill_leader if kind == "kill" else self._cluster.freeze_leader
        hurt()
        if kind == "kill":
            self.found.kills += 1
        else:
            self.found.freezes += 1
        again = self._wait_for_a_job_sent_after(self._cluster.hurt_until, 90.0)
        self.found.recoveries.append(again - self._cluster.hurt_at)
        self._cluster.heal()

    def end(self, done: Callable[[], Sequence[str]] | None = None) -> Found:
        """Send no more, let all be handled, and count. `done`: what is, if the handlers' ledger does not tell: what it
        names may still be undone with its transaction."""
        (self._folder / "stop").touch()
        for process in self._senders:
            assert process.wait(_DRAIN) == 0, self.errors()
        confirmed = set(self._lines("confirmed"))
        deadline = time.monotonic() + _DRAIN
        handled_now = self._handled if done is None else lambda: Counter(done())
        while (lost := confirmed - set(handled := handled_now())) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in self._handlers:
            process.send_signal(signal.SIGTERM)
        for process in self._handlers:
            assert process.wait(_DRAIN) == 0, self.errors()
        self.found.confirmed = len(confirmed)
        self.found.lost = sorted(lost)
        self.found.doubled = {job: count for job, count in handled.items() if count > 1}
        return self.found

    def abandon(self) -> None:
        """Kill what is left of it."""
        for process in (*self._senders, *self._handlers):
            if process.poll() is None:
                process.kill()
                process.wait()

    def errors(self) -> str:
        """The last words of each process."""
        said = [f"{path.name}: {path.read_text()[-1500:]}" for path in sorted(self._folder.glob("*.err"))]
        return "\n".join(said)

    def _wait_for_a_job_sent_after(self, moment: float, seconds: float) -> float:
        """When it was handled."""
        deadline = time.monotonic() + seconds
        while True:
            for line in self._lines("handled"):
                _, sent, handled = line.split()
                if float(sent) > moment:
                    return float(handled)
            assert time.monotonic() < deadline, f"nothing is handled again within {seconds:.0f} s\n{self.errors()}"
            time.sleep(0.1)

    def _handled(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self._lines("handled"))

    def _lines(self, ledger: str) -> Sequence[str]:
        path = self._folder / ledger
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()
