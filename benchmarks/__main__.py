"""python -m benchmarks [embedded|alone|backlog|footprint|steps|redis|…|engines|clients|figures …] [--rounds N] …

Without a name: all but `clients`. `engines`: all that need a server, which is started for them; `clients`: the client
libraries that they could be built on. `--engine redis` picks one of these.
`figures` only puts what docs/results holds into the documents.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from . import alone, backlog, children, embedded, engines, exactly_once, footprint, relay, report, steps
from .clients import measure as clients

CLIENTS = children.ROOT / "docs" / "dependencies.md"


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, compare, and write results.")
    choices = [*report.ORDER, "engines", "clients", "figures", []]
    parser.add_argument("names", nargs="*", choices=choices, help="default: all")
    parser.add_argument("--engine", action="append", choices=[*engines.PLANS], help="of these two; default all")
    parser.add_argument("--rounds", type=int, help="of each; default 5, of exactly_once 7, of backlog 1")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual numbers of messages")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where results go")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where databases are made: a real disk")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds that each measurement waits for an idle machine, at most"
    )
    options = parser.parse_args()
    children.patience = options.patience
    names: list[str] = options.names or [*report.ORDER, "figures"]
    for name in _named(names, options.engine or [*engines.PLANS]):
        if name != "figures":
            _run(name, options.rounds, options.scale, options.dir, options.results)
    if "figures" in names:
        filled = report.fill_blocks(options.results)
        if clients.fill_table(CLIENTS, options.results):
            filled.append(CLIENTS)
        for path in filled:
            print(f"filled {path}")


def _named(names: list[str], picked: list[str]) -> list[str]:
    groups = {"engines": picked, "clients": [f"clients-{engine}" for engine in picked]}
    return [one for name in names for one in groups.get(name, [name])]


def _run(name: str, rounds: int | None, scale: float, directory: Path, results: Path) -> None:
    def size(usual: int) -> int:
        return max(100, int(usual * scale))

    with tempfile.TemporaryDirectory(prefix="easybus-bench-", dir=directory) as fresh:
        place = Path(fresh)
        if name == "embedded":
            sizes = embedded.Sizes(size(100_000), size(60_000), size(2_000))
            measured = embedded.measure(place, rounds or 5, sizes, print)
        elif name.startswith("clients-"):
            measured = clients.measure(name.removeprefix("clients-"), place, rounds or 3, size(20_000), print)
        elif name in engines.PLANS:
            measured = engines.measure(name, place, rounds or 5, scale, print)
        elif name == "alone":
            measured = alone.measure(place, rounds or 5, size(300), print)
        elif name == "backlog":
            measured = backlog.measure(place, rounds or 1, size(1_000_000), print)
        elif name == "exactly_once":
            measured = exactly_once.measure(place, rounds or 7, size(15_000), print)
        elif name == "relay":
            measured = relay.measure(place, rounds or 5, size(200), size(2_000), print)
        elif name == "steps":
            measured = steps.measure(place, rounds or 5, size(20_000), print)
        else:
            measured = footprint.measure(place, rounds or 5, size(1_000), print)
    print(report.write(name, *measured, into=results))


if __name__ == "__main__":
    main()
