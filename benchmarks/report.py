"""Figures beside what is asked of them: a table, docs/results/<name>.json and .md, and the block in the documents."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import ROOT
from .machine import description

RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Figure:
    """One measured thing: a value of each round, and the bound that is asked of their median."""

    name: str
    values: Sequence[float]
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def asked(self) -> str:
        if self.at_least is not None:
            return f"≥ {shown(self.at_least)}"
        return f"≤ {shown(self.at_most)}" if self.at_most is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the bound; None: nothing is asked."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return self.median <= self.at_most if self.at_most is not None else None


def shown(value: float | None) -> str:
    """A value as it stands in a table."""
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | median | lowest – highest | asked | |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        met = {True: "met", False: "**not met**", None: ""}[figure.met]
        spread = f"{shown(min(figure.values))} – {shown(max(figure.values))}"
        name = f"{figure.name} ({figure.note})" if figure.note else figure.name
        lines.append(f"| {name} | {shown(figure.median)} {figure.unit} | {spread} | {figure.asked} | {met} |")
    return "\n".join(lines)


def write(
    name: str, title: str, figures: Sequence[Figure], speeds: Sequence[dict[str, float]], into: Path = RESULTS
) -> str:
    """Write a benchmark's results and return them as text. `speeds`: the machine's, around and between the rounds."""
    machine = {key: statistics.median(speed[key] for speed in speeds) for key in speeds[0]}
    made = description()
    text = f"{title}\n\n{_machine_line(machine, made)}\n\n{table(figures)}\n"
    into.mkdir(parents=True, exist_ok=True)
    (into / f"{name}.md").write_text(text)
    data: dict[str, Any] = {
        "title": title,
        "made_on": made,
        "machine": machine,
        "figures": [
            {
                "name": figure.name,
                "note": figure.note,
                "unit": figure.unit,
                "median": figure.median,
                "rounds": list(figure.values),
                "at_least": figure.at_least,
                "at_most": figure.at_most,
                "met": figure.met,
            }
            for figure in figures
        ],
    }
    (into / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    return text


def _machine_line(machine: dict[str, float], made: dict[str, Any]) -> str:
    return (
        f"{made['processors']} processors, {made['system']}, Python {made['python']}, SQLite {made['sqlite']}. "
        f"The machine's speed meanwhile: {machine['python_loops_per_ms']:,.0f} Python loops a millisecond of processor "
        f"time, {machine['share_of_a_processor']:.0%} of a processor for one thread, a load of {machine['load']:.1f}, "
        f"{machine['flush_us']:.0f} µs to flush 4 KiB."
    )


def fill_blocks(results: Path = RESULTS, whole: Path | None = None, short: Path | None = None) -> list[Path]:
    """Put the results into the documents, between `figures: begin` and `figures: end`: into `whole` all of them, into
    `short` those of which something is asked. Returns the documents that have such a block."""
    found = [name for name in ORDER if (results / f"{name}.json").exists()]
    everything = "\n\n".join((results / f"{name}.md").read_text().strip() for name in found)
    texts = {
        whole or ROOT / "docs" / "benchmarks.md": everything,
        short or ROOT / "README.md": _short([json.loads((results / f"{name}.json").read_text()) for name in found]),
    }
    return [document for document, text in texts.items() if fill(document, text)]


def fill(document: Path, text: str, block: str = "figures") -> bool:
    """Put the text into the document's block of this name; whether there is one."""
    begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
    before, begun, rest = document.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        return False
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    return True


def _short(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| figure | median | asked | |", "| --- | --- | --- | --- |"]
    for result in results:
        for one in result["figures"]:
            figure = Figure(one["name"], one["rounds"], one["unit"], one["at_least"], one["at_most"])
            if figure.met is not None:
                met = "met" if figure.met else "**not met**"
                lines.append(f"| {figure.name} | {shown(figure.median)} {figure.unit} | {figure.asked} | {met} |")
    machine = _machine_line(results[0]["machine"], results[0]["made_on"]) if results else ""
    return "\n".join([*lines, "", machine]).strip()


ORDER = (
    *("embedded", "alone", "backlog", "footprint", "steps"),
    *("rabbitmq", "redis", "nats", "postgresql", "mysql"),
    *("exactly_once", "relay"),
)
"""Benchmarks, in the order in which they run and are shown."""
