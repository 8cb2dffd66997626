"""The proof: 100,000 transfers while workers and the database are killed, and every account is right.

    make bank [TRANSFERS=100000] [ENGINE=postgresql] [SEED=7]
    python -m examples.bank [--transfers N] [--engine sqlite] [--seed 7] [--keep FOLDER]

two tellers, their relay, two workers that book and one that writes statements ─→ one of them, any, is killed every
2 seconds, and the database server every 10; each is started again ─→ nothing is on its way ─→ the books are closed:
exit 1 if a figure is not what it must be
"""

import argparse
import asyncio
import logging
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from easybus import Bus, EngineError
from easybus.engines.contract import AuditedEngine

from ..display import Display
from ..processes import Crashed, Process
from ..servers import PrivateServer, private_server
from .audit import close_the_books, on_its_way, progress, show
from .database import KINDS, TABLES, Database, open_database
from .plan import ACCOUNTS, BALANCE

TELLERS, BOOKERS = 2, 2
STUCK = 90.0
"""Seconds without any progress after which something hangs: every lease is far shorter."""
LOOK_EVERY = 0.5
AWAY = 1.0
"""Seconds that the killed server stays away: longer than a worker takes to start."""
STARTS = 20
"""How often its start is tried, a second apart: what others try at its port meanwhile may hold that."""


class Bank:
    """One run: its processes, what kills them, and what is counted about it."""

    def __init__(
        self, given: argparse.Namespace, *, seed: int, url: str, server: PrivateServer | None, folder: Path
    ) -> None:
        self.killed: Counter[str] = Counter()
        self.revived = 0
        self.weaknesses: list[str] = []
        self._given = given
        self._seed = seed
        self._url = url
        self._server = server
        self._folder = folder
        self._database: Database = open_database(url)
        self._random = random.Random(seed)
        self._began = self._moved_at = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._all_at_work = asyncio.Event()
        self._restarting = False
        self._db: Any = None
        self._blind = ""
        """Why nobody can see how far they are."""

    async def run(self, console: Console) -> bool:
        """From the first transfer to the closing of the books; whether these are right.

        Raises:
            Crashed: a process ended that nobody had killed, or did not stop cleanly.
            TimeoutError: nothing moves any more.
        """
        await self._prepare()
        number = self._given.transfers
        goals = Counter({"accepted": number, "booked": number, "told": number})
        # Whoever looks from outside is a service of its own: it relays and handles nothing of the bank's.
        async with Bus(self._url, service="auditor") as bus:
            if isinstance(bus.opened.engine, AuditedEngine):
                self.weaknesses = await bus.opened.engine.durability()
            with ExitStack() as stack, Display(console, goals) as display:
                tellers, workers = self._start(stack)
                killing = asyncio.create_task(self._kill([*tellers, *workers], display))
                try:
                    while await self._working(bus, tellers, workers):
                        await self._look(display)
                        if killing.done():
                            killing.result()
                finally:
                    await self._stop_looking()
                    await self._stop_killing(killing)
                for worker in workers:
                    worker.stop()
            lines = await close_the_books(bus, self._database, number, self._seed)
        return show(lines, self._what_happened(time.monotonic() - self._began), console) and not self.weaknesses

    def _what_happened(self, seconds: float) -> dict[str, str]:
        server = self.killed.pop("server", 0)
        each = ", ".join(f"{name} {times}" for name, times in sorted(self.killed.items()))
        return {
            "workers killed": f"{self.killed.total():,}" + (f" ({each})" if each else ""),
            "database server killed": f"{server:,}",
            "found no server, started again": f"{self.revived:,}",
            "what weakens its durability": "; ".join(self.weaknesses) or "nothing",
            "seconds": f"{seconds:,.1f}",
        }

    async def _prepare(self) -> None:
        """The bank's tables, and what the services declare, before the first of them starts."""
        os.environ["EASYBUS_URL"] = self._url  # the services read it where they are imported
        from . import accounts, statements, tellers

        for bus in (accounts.bus, statements.bus, tellers.bus):
            async with bus:
                pass
        db = await self._database.connect()
        try:
            for table in TABLES:
                await self._database.execute(db, table)
            async with self._database.transaction(db):
                for account in range(1, ACCOUNTS + 1):
                    await self._database.execute(db, "INSERT INTO account VALUES (?, ?)", account, BALANCE)
        finally:
            await self._database.close(db)

    def _start(self, stack: ExitStack) -> tuple[list[Process], list[Process]]:
        given, env = self._given, {"EASYBUS_URL": self._url}
        accepts = [
            f"--of={TELLERS}",
            f"--transfers={given.transfers}",
            f"--seed={self._seed}",
            f"--pause={given.pause}",
        ]

        def process(name: str, *command: str) -> Process:
            started = Process(name, command, env, self._folder)
            stack.callback(started.destroy)
            return started

        tellers = [
            process(f"teller-{n}", "examples.bank.tellers", f"--teller={n}", *accepts) for n in range(1, TELLERS + 1)
        ]
        workers = [process("relay", "easybus.cli", "relay", "examples.bank.tellers:bus")]
        workers += [
            process(f"accounts-{n}", "easybus.cli", "run", "examples.bank.accounts:bus") for n in range(1, BOOKERS + 1)
        ]
        workers.append(process("statements", "easybus.cli", "run", "examples.bank.statements:bus"))
        return tellers, workers

    # ------------------------------------------------------------------------------------------------------ watching

    async def _working(self, bus: Bus, tellers: Sequence[Process], workers: Sequence[Process]) -> bool:
        """Whether anything is still to come. Raises `Crashed`, `TimeoutError`."""
        for process in (*tellers, *workers):
            if process.revive():
                self.revived += 1
        for worker in workers:
            if worker.finished:
                raise Crashed(f"{worker.name} ended, and nobody had stopped it")
        self.server_lives()
        if not all(teller.finished for teller in tellers):
            found = [teller.name for teller in tellers if not teller.finished]
        else:
            try:
                found = await on_its_way(bus)
            except EngineError as error:
                found = [str(error)]
        if found and time.monotonic() - self._moved_at > STUCK:
            raise TimeoutError(self._stuck(found, [*tellers, *workers]))
        return bool(found)

    def server_lives(self) -> None:
        """Raises `Crashed` if the database server ended of itself."""
        if self._server is not None and not (self._restarting or self._server.up):
            raise Crashed(f"the database server ended, and nobody had killed it:\n{self._server.output()[-3000:]}")

    def _stuck(self, found: Sequence[str], processes: Sequence[Process]) -> str:
        said = [f"nothing moved for {STUCK:g} s; still there: {', '.join(found)}"]
        if self._blind:
            said.append(f"the auditor cannot see how far they are: {self._blind}")
        said += [f"{process.name} wrote last:\n{process.log_end(10)}" for process in processes]
        if self._server is not None:
            said.append(f"the database server wrote last:\n{self._server.output()[-3000:]}")
        return "\n".join(said)

    async def _look(self, display: Display) -> None:
        await asyncio.sleep(LOOK_EVERY)
        try:
            if self._db is None:
                self._db = await self._database.connect()
            done = await progress(self._database, self._db)
        except self._database.lost as error:
            self._blind = f"{type(error).__name__}: {error}"
            await self._stop_looking()
            return
        self._blind = ""
        display.update(done)
        if done != self._seen:
            self._seen, self._moved_at = done, time.monotonic()
        if done["told"]:
            self._all_at_work.set()

    async def _stop_looking(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await self._database.close(db)

    # ------------------------------------------------------------------------------------------------------- killing

    async def _kill(self, processes: Sequence[Process], display: Display) -> None:
        """From when all of them have something to do: one that is about to start has nothing to lose."""
        await self._all_at_work.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._given.kill_for):
                await asyncio.gather(self._kill_workers(processes, display), self._kill_server(display))

    async def _kill_workers(self, processes: Sequence[Process], display: Display) -> None:
        while True:
            await asyncio.sleep(self._given.kill_every)
            victim = self._random.choice(processes)
            pid = victim.pid
            if victim.kill():
                self.killed[victim.name] += 1
                display.say(f"{victim.name} (process {pid}) killed, started again")

    async def _kill_server(self, display: Display) -> None:
        while self._server is not None:
            await asyncio.sleep(self._given.server_every)
            display.say("the database server is killed")
            under_way = asyncio.ensure_future(asyncio.to_thread(self._kill_and_restart, self._server))
            try:
                await asyncio.shield(under_way)
            finally:
                await under_way  # it is up in the end, whatever ends this
            display.say("the database server is back")

    def _kill_and_restart(self, server: PrivateServer) -> None:
        self._restarting = True
        server.kill()
        self.killed["server"] += 1
        for left in reversed(range(STARTS)):
            time.sleep(AWAY)
            try:
                server.start()
                break
            except RuntimeError:
                if not left:
                    raise
        self._restarting = False

    async def _stop_killing(self, killing: asyncio.Task[None]) -> None:
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=100_000, metavar="N")
    parser.add_argument("--engine", default="postgresql", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=None, help="who pays whom, and who is killed")
    parser.add_argument("--kill-every", type=float, default=2.0, help="a worker, in seconds", metavar="S")
    parser.add_argument("--server-every", type=float, default=10.0, help="the database server", metavar="S")
    parser.add_argument("--kill-for", type=float, default=math.inf, help="kill no more after so long", metavar="S")
    parser.add_argument("--pause", type=float, default=0.0, help="a teller's seconds between customers", metavar="S")
    parser.add_argument("--keep", type=Path, help="a new folder for the logs, kept", metavar="FOLDER")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing running
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bank-")))
        folder.mkdir(exist_ok=given.keep is None)
        folder = folder.resolve()
        logging.basicConfig(filename=folder / "auditor.log")
        server = stack.enter_context(private_server(given.engine, KINDS))
        url = f"sqlite:///{folder / 'bank.db'}" if server is None else server.url()
        console.print(
            f"seed {seed}: {given.transfers:,} transfers on {given.engine}; a worker is killed every "
            f"{given.kill_every:g} s" + ("" if server is None else f", the server every {given.server_every:g} s"),
            soft_wrap=True,
        )
        bank = Bank(given, seed=seed, url=url, server=server, folder=folder)
        try:
            right = asyncio.run(bank.run(console))
        except (Crashed, TimeoutError, RuntimeError) as error:
            console.print(f"FAILED: {error}", style="bold red", markup=False)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        console.print("every account is right" if right else "WRONG", style="bold green" if right else "bold red")
        sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
