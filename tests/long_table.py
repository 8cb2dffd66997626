"""What the long tests came to: docs/results/long.json and .md, and the block in docs/tested.md.

`make test-long` writes it at its end; `python -m tests.long_table RESULTS.xml` reads it from what `--junitxml` wrote.
A row is one test with all its cases. A run writes the rows of what it ran and leaves the others; a test of which it
picked only some cases, as with `-k`, keeps the row that it had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from benchmarks.machine import description
from benchmarks.report import RESULTS, ROOT, fill

PAGE = ROOT / "docs" / "tested.md"


@dataclass
class Row:
    """One test, and when and where it was last run whole."""

    test: str
    cases: int
    failed: int
    skipped: int
    seconds: float
    """Of its cases one after the other, though some of them may have run side by side."""
    date: str
    commit: str
    made_on: dict[str, Any]

    @property
    def result(self) -> str:
        if self.failed:
            return f"**{self.failed} failed**"
        return f"passed, {self.skipped} skipped" if self.skipped else "passed"


class Tally:
    """Counts cases as they end."""

    def __init__(self) -> None:
        self._outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        self._seconds: dict[str, float] = defaultdict(float)
        self.partial: set[str] = set()
        """Tests of which only some cases were picked."""

    def add(self, case: str, outcome: str, seconds: float) -> None:
        """A part of a case has ended: its setup, its call, its teardown. The worst outcome stays."""
        outcomes = self._outcomes[_test(case)]
        if outcomes.get(case) != "failed" and (outcome != "passed" or case not in outcomes):
            outcomes[case] = outcome
        self._seconds[_test(case)] += seconds

    def rows(self, date: str, commit: str) -> list[Row]:
        """A row for each test that was run whole."""
        made_on = description()
        return [
            Row(
                test=test,
                cases=len(outcomes),
                failed=[*outcomes.values()].count("failed"),
                skipped=[*outcomes.values()].count("skipped"),
                seconds=round(self._seconds[test], 1),
                date=date,
                commit=commit,
                made_on=made_on,
            )
            for test, outcomes in self._outcomes.items()
            if test not in self.partial
        ]

    def in_part(self) -> list[str]:
        """Tests of which only some cases were run."""
        return [test for test in self._outcomes if test in self.partial]


class LongTable:
    """The hooks of a run of the long tests; with xdist those of the process that collects the results."""

    def __init__(self, results: Path = RESULTS, page: Path = PAGE) -> None:
        self._results = results
        self._page = page
        self._tally = Tally()

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        self._tally.partial |= {_test(item.nodeid) for item in items if item.get_closest_marker("long")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tally.add(report.nodeid, report.outcome, report.duration)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["partial"] = sorted(self._tally.partial)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._tally.partial |= set(getattr(node, "workeroutput", {}).get("partial", ()))

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):  # interrupted: no row is whole
            return
        rows = self._tally.rows(datetime.now(UTC).date().isoformat(), commit())
        write(rows, self._results, self._page)
        terminalreporter.section("the long tests")
        terminalreporter.write_line(table(rows))
        for test in self._tally.in_part():
            terminalreporter.write_line(f"only some cases of {test} were run: its row stays as it was")


def register(config: pytest.Config) -> None:
    """Take part in a run of the long tests alone."""
    if config.option.markexpr == "long" and not config.option.collectonly:
        config.pluginmanager.register(LongTable(), "long-table")


def write(rows: Iterable[Row], results: Path = RESULTS, page: Path = PAGE) -> None:
    """Put these rows beside what is there, and all of them into the page."""
    path = results / "long.json"
    kept = [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []
    by_test = {row.test: row for row in (*kept, *rows)}
    every = [by_test[test] for test in sorted(by_test)]
    if not every:
        return
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in every], indent=1) + "\n")
    (results / "long.md").write_text(table(every) + "\n")
    fill(page, table(every))


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown, and what they were made on."""
    lines = ["| long test | cases | result | took | on |", "| --- | --- | --- | --- | --- |"]
    made: dict[str, None] = {}
    for row in rows:
        said = row.test.rpartition("::")[2].removeprefix("test_").replace("_", " ") + _engine(row.test)
        lines.append(f"| {said} | {row.cases} | {row.result} | {_span(row.seconds)} | {row.date}, `{row.commit}` |")
        on = row.made_on
        made[f"{on['processors']} processors, {on['system']}, Python {on['python']}, SQLite {on['sqlite']}."] = None
    return "\n".join([*lines, "", *made])


def commit() -> str:
    """What is checked out; empty where that is not known."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def read(junit: Path) -> tuple[Tally, str]:
    """The cases that `--junitxml` wrote, and the day of the run."""
    tally, date = Tally(), ""
    for suite in ET.parse(junit).getroot().iter("testsuite"):
        date = suite.get("timestamp", "")[:10]
        for case in suite.iter("testcase"):
            kinds = {part.tag for part in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            module, _, kind = case.get("classname", "").partition(".Test")
            inside = f"Test{kind}::" if kind else ""
            name = f"{module.replace('.', '/')}.py::{inside}{case.get('name')}"
            tally.add(name, outcome, float(case.get("time", 0)))
    return tally, date


def _test(case: str) -> str:
    return case.partition("[")[0]


def _engine(test: str) -> str:
    """Which engine's it is, where each has its own."""
    parts = test.split("/")
    return f", {parts[3]}" if parts[2:3] == ["engines"] else ""


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


def main() -> None:
    """Write the rows of a run that `--junitxml` has kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.long_table", description=main.__doc__)
    parser.add_argument("junit", type=Path, help="what --junitxml wrote, of a run of whole tests")
    parser.add_argument("--commit", default=commit(), help="what was tested (default: what is checked out)")
    options = parser.parse_args()
    tally, date = read(options.junit)
    rows = tally.rows(date, options.commit)
    write(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
