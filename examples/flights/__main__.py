"""The proof: the flights are sent and handled while processes are killed, and every total is right.

    make demo [SEED=7] [ENGINE=sqlite]
    python -m examples.flights [--seed 7] [--engine sqlite] [--flights N] [--kills N] [--keep FOLDER]

four workers and a sender, killed at random and started again ─→ all is handled but the spoilt records: dead letters
─→ these are mended and replayed ─→ the workers stop ─→ every total beside the report's; exit 1 if one differs
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from easybus import Bus, NotDeclared

from ..display import Display
from ..processes import Crashed, Process
from ..servers import ENGINES, private_server
from . import app, totals
from .mending import mend_and_replay

WORKERS = 4
SPOILT = 6
"""Records that are spoilt on purpose."""
STUCK = 45.0
"""Seconds without any progress after which something hangs: every lease is far shorter."""
LOOK_EVERY = 0.1
QUIET = 2 * app.LEASE
"""Seconds without any progress after which nothing is on its way, where the engine cannot count what is."""


class Demo:
    """One run: its processes, and what is counted about it."""

    def __init__(self, *, flights: int, kills: int, seed: int, url: str, folder: Path, console: Console) -> None:
        self.flights = flights
        self.console = console
        self.database = folder / app.DATABASE.name
        self.storage = f"sqlite:///{self.database}"
        self.url = url
        self.expected = totals.expected(flights)
        self.killed: Counter[str] = Counter()
        self.replayed = 0
        self._folder = folder
        self._random = random.Random(seed)
        self._spoilt = sorted(self._random.sample(range(1, flights + 1), min(SPOILT, flights)))
        # When to kill: at these parts of the work done. A third of the kills goes to the sender.
        moments = [self._random.uniform(0.03, 0.93) for _ in range(kills)]
        self._sender_dies = sorted(moments[: kills // 3])
        self._workers_die = sorted(moments[kills // 3 :])
        self._seen: Counter[str] = Counter()
        self._moved_at = time.monotonic()

    async def run(self) -> None:
        """From the first flight to the last replay.

        Raises:
            Crashed: a process ended that nobody had killed, or did not stop cleanly.
            TimeoutError: nothing moves any more.
        """
        app.create_tables(self.database)
        goals = progress(self.expected)
        # Whoever looks from outside is a service of its own: it relays and handles nothing of the flights'.
        async with Bus(self.url, storage=self.storage, service="operator") as bus:
            with ExitStack() as stack, Display(self.console, goals) as display:
                sender, workers = self._start(stack)
                while self._sender_dies or self._workers_die or await self._on_its_way(bus, sender):
                    done = await self._look(display, bus, sender, workers)
                    await self._kill_who_is_due(sender, workers, done, goals, display)
                display.say("all is handled but the spoilt records")
                self.replayed = await mend_and_replay(bus, self.console)
                while await letters(bus) or await self._on_its_way(bus, sender):
                    await self._look(display, bus, sender, workers)
                for worker in workers:
                    worker.stop()

    def _start(self, stack: ExitStack) -> tuple[Process, list[Process]]:
        env = {"EASYBUS_URL": self.url, "FLIGHTS_DATABASE": str(self.database)}
        sends = ["examples.flights.sender", f"--flights={self.flights}", "--spoilt", *map(str, self._spoilt)]
        works = ["examples.flights.app"]
        sender = Process("sender", sends, env, self._folder)
        workers = [Process(f"worker-{n}", works, env, self._folder) for n in range(1, WORKERS + 1)]
        for process in (sender, *workers):
            stack.callback(process.destroy)
        return sender, workers

    async def _look(self, display: Display, bus: Bus, sender: Process, workers: list[Process]) -> Counter[str]:
        """How far everything is, after a while; and whether all is well."""
        await asyncio.sleep(self._random.uniform(0.5, 1.5) * LOOK_EVERY)
        done = progress(totals.found(self.database))
        display.update(done)
        if done != self._seen:
            self._seen, self._moved_at = done, time.monotonic()
        sender.ended()
        for worker in workers:
            if worker.ended():
                raise Crashed(f"{worker.name} ended, and nobody had stopped it")
        if time.monotonic() - self._moved_at > STUCK:
            raise TimeoutError(f"nothing moved for {STUCK:g} s; still there: {', '.join(await on_its_way(bus))}")
        return done

    async def _kill_who_is_due(
        self, sender: Process, workers: list[Process], done: Counter[str], goals: Counter[str], display: Display
    ) -> None:
        if self._sender_dies and done["sent"] >= self._sender_dies[0] * goals["sent"]:
            at, victim = self._sender_dies.pop(0), sender
            if sender.ended():  # too late for this one: a worker dies for it
                self._workers_die.append(at)
                return
        elif self._workers_die and handled(done) >= self._workers_die[0] * handled(goals):
            self._workers_die.pop(0)
            victim = self._random.choice(workers)
        else:
            return
        pid = victim.pid
        if victim.kill():
            self.killed[victim.name] += 1
            display.say(f"{victim.name} (process {pid}) killed, started again")

    async def _on_its_way(self, bus: Bus, sender: Process) -> list[str]:
        if not sender.ended():
            return [sender.name]
        found = await on_its_way(bus)
        if not bus.driver.caps.counts and time.monotonic() - self._moved_at < QUIET:
            found.append("what the engine cannot count")
        return found

    def report(self, seconds: float) -> bool:
        """Print the totals and what happened on the way; whether all totals are right."""
        compared = totals.compare(totals.found(self.database), self.expected)
        equal = totals.show(compared, self.console)
        marks = (self._folder / app.RUNS.name).read_bytes()
        runs, failures, known = marks.count(b"+"), marks.count(b"!"), marks.count(b"=")
        effects = handled(progress(self.expected))
        say = self.console.print
        say(f"{self.flights:,} flights sent, {effects:,} times handled; {'every total is equal' if equal else 'WRONG'}")
        say(f"processes killed    {self.killed.total()} (the sender {self.killed['sender']} times)")
        say(f"handlers begun      {runs:,} times")
        say(f"  retried           {failures:,} (the bank was away)")
        say(f"  taken over        {runs - failures - effects:,} (their process was killed meanwhile)")
        say(f"taken over, done    {known:,} (killed after the work: already_handled told)")
        say(f"dead letters        {self.replayed} mended and replayed")
        say(f"time                {seconds:.1f} s")
        return equal


async def on_its_way(bus: Bus) -> list[str]:
    """Where messages are that are neither handled nor dead letters; looked at in the order in which they go."""
    found = ["the outbox" for outbox in bus.outboxes if await outbox.find(limit=1)]
    for queue in dict.fromkeys(handler.queue for handler in app.router.handlers):
        try:
            stats = await bus.driver.stats(queue)
        except NotDeclared:
            continue  # no process has come so far
        if stats.ready or stats.in_flight or stats.delayed:
            found.append(f"{queue} ({stats.ready} ready, {stats.in_flight} in flight, {stats.delayed} delayed)")
    return found


async def letters(bus: Bus) -> int:
    """How many dead letters there are."""
    assert bus.dead_letters is not None
    return sum((await bus.dead_letters.count()).values())


def progress(figures: Counter[str]) -> Counter[str]:
    """Totals, summed to what there is to see."""

    def of(what: str) -> int:
        return sum(figure for name, figure in figures.items() if name.endswith(what))

    return Counter(
        {
            "sent": figures[totals.LEDGER],
            "departures": of(": flights"),
            "compensated": of(": late flights compensated"),
            "rebooked": of(": rebooked flights"),
            "credited": of(": flights credited"),
        }
    )


def handled(figures: Counter[str]) -> int:
    """How often a message was handled, of what `progress` says."""
    return figures.total() - figures["sent"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="who is killed when, and what is spoilt")
    parser.add_argument("--engine", default="sqlite", help=", ".join(ENGINES))
    parser.add_argument("--flights", type=int, default=totals.expected()[totals.LEDGER], help="only the first N")
    parser.add_argument("--kills", type=int, default=14)
    parser.add_argument("--keep", type=Path, help="a new folder for the databases and logs, kept", metavar="FOLDER")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    console = Console(highlight=False)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flights-")))
        folder.mkdir(exist_ok=given.keep is None)
        folder = folder.resolve()
        server = stack.enter_context(private_server(given.engine))
        url = f"sqlite:///{folder / app.DATABASE.name}" if server is None else server.url()
        demo = Demo(flights=given.flights, kills=given.kills, seed=seed, url=url, folder=folder, console=console)
        console.print(f"seed {seed}: {given.flights:,} flights, {given.kills} kills, {WORKERS} workers, {given.engine}")
        failed = False
        try:
            asyncio.run(demo.run())
        except (Crashed, TimeoutError) as error:
            failed = True
            console.print(f"FAILED: {error}", style="bold red", markup=False)
        except KeyboardInterrupt:
            sys.exit(130)
        equal = demo.report(time.monotonic() - began)
        sys.exit(0 if equal and not failed else 1)


if __name__ == "__main__":
    main()
