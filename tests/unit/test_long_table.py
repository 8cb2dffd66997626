"""`make test-long` ends with a table of what it ran, and keeps the rows of what it did not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import long_table
from tests.long_table import LongTable, Row

pytest_plugins = ("pytester",)

SUITE = """
import pytest

@pytest.mark.long
@pytest.mark.parametrize("engine", ["memory", "sqlite", "redis"])
def test_every_death(engine):
    assert engine != "redis", "lost"

@pytest.mark.long
@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_every_fault_is_met(engine):
    if engine == "sqlite":
        pytest.skip("not here")

def test_short():
    pass
"""

ARGS = ("-m", "long", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist", "-p", "no:hypothesispytest")


class Run:
    """Runs of a suite of its own, with a page and results of its own."""

    def __init__(self, pytester: pytest.Pytester, folder: Path) -> None:
        self._pytester = pytester
        self._results = folder / "results"
        self.page = folder / "tested.md"
        self.page.write_text("before\n<!-- figures: begin -->\nnothing yet\n<!-- figures: end -->\nafter\n")
        pytester.makepyfile(test_suite=SUITE)

    def __call__(self, *args: str) -> str:
        plugin = LongTable(self._results, self.page)
        result = self._pytester.inline_run(*ARGS, *args, plugins=[plugin])
        return str(result.ret)

    def rows(self) -> dict[str, Row]:
        rows = [Row(**row) for row in json.loads((self._results / "long.json").read_text())]
        return {row.test: row for row in rows}


@pytest.fixture
def run(pytester: pytest.Pytester, tmp_path: Path) -> Run:
    return Run(pytester, tmp_path)


def test_each_long_test_has_a_row_with_its_cases_and_their_outcome(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    printed = capsys.readouterr().out
    rows = run.rows()
    assert {test: (row.cases, row.failed, row.skipped) for test, row in rows.items()} == {
        "test_suite.py::test_every_death": (3, 1, 0),
        "test_suite.py::test_every_fault_is_met": (2, 0, 1),
    }
    assert all(row.date and row.made_on["processors"] for row in rows.values())
    page = run.page.read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    for text in (printed, page):
        assert "| every death | 3 | **1 failed** | 0 s |" in text
        assert "| every fault is met | 2 | passed, 1 skipped | 0 s |" in text


def test_a_run_of_some_tests_leaves_the_rows_of_the_others(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    before = run.rows()
    capsys.readouterr()
    run("-k", "fault")
    assert "only some cases" not in capsys.readouterr().out
    after = run.rows()
    assert after["test_suite.py::test_every_death"] == before["test_suite.py::test_every_death"]
    assert after.keys() == before.keys()
    assert "| every death | 3 |" in run.page.read_text()


def test_a_test_of_which_some_cases_are_run_keeps_its_row_and_that_is_said(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    before = run.rows()
    capsys.readouterr()
    run("-k", "memory")
    assert run.rows() == before
    assert "only some cases of test_suite.py::test_every_death were run" in capsys.readouterr().out


def test_an_interrupted_run_writes_nothing(run: Run, pytester: pytest.Pytester) -> None:
    run()
    before = run.rows()
    pytester.makepyfile(test_suite=SUITE + "\n@pytest.mark.long\ndef test_last():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.rows() == before


def test_the_table_is_read_from_a_junit_file_too(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile(test_suite=SUITE)
    pytester.inline_run(*ARGS, f"--junitxml={tmp_path}/long.xml")
    tally, date = long_table.read(tmp_path / "long.xml")
    rows = tally.rows(date, "fd99994")
    assert [(row.test, row.cases, row.failed, row.skipped) for row in rows] == [
        ("test_suite.py::test_every_death", 3, 1, 0),
        ("test_suite.py::test_every_fault_is_met", 2, 0, 1),
    ]
    assert all(row.commit == "fd99994" and len(row.date) == 10 for row in rows)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.0, "89 s"), (150.0, "2 min"), (3600.0, "1 h 0 min"), (9000.0, "2 h 30 min")]
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert long_table._span(seconds) == said


def test_an_engines_own_test_is_named_alike_by_a_run_and_by_its_junit_file_and_says_which_it_is(tmp_path: Path) -> None:
    junit = tmp_path / "ran.xml"
    junit.write_text(
        '<testsuites><testsuite timestamp="2026-11-30T12:00:00">'
        '<testcase classname="tests.unit.engines.redis.test_faults.TestOutages" name="test_ten_minutes" time="650"/>'
        "</testsuite></testsuites>"
    )
    tally, date = long_table.read(junit)
    (row,) = tally.rows(date, "abc")
    assert row.test == "tests/unit/engines/redis/test_faults.py::TestOutages::test_ten_minutes"
    assert "| ten minutes, redis | 1 | passed | 11 min |" in long_table.table([row])


def test_only_a_run_of_the_long_tests_alone_writes() -> None:
    class Manager:
        registered = 0

        def register(self, plugin: object, name: str) -> None:
            self.registered += 1

    class Option:
        def __init__(self, markexpr: str, collectonly: bool) -> None:
            self.markexpr, self.collectonly = markexpr, collectonly

    class Config:
        def __init__(self, markexpr: str, collectonly: bool = False) -> None:
            self.option, self.pluginmanager = Option(markexpr, collectonly), Manager()

    for config, registered in (
        (Config("long"), 1), (Config("not long"), 0), (Config(""), 0), (Config("long", collectonly=True), 0),
    ):  # fmt: skip
        long_table.register(config)  # type: ignore[arg-type]
        assert config.pluginmanager.registered == registered
