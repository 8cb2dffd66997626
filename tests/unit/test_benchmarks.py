"""The benchmarks run, and their results have the shape that the documents are filled with; no figure is judged here."""

from __future__ import annotations

import collections
import importlib
import json
from typing import Any

import pytest
from benchmarks import (
    alone,
    backlog,
    children,
    embedded,
    engines,
    exactly_once,
    footprint,
    machine,
    ours,
    peers,
    pipeline,
    relay,
    report,
    steps,
)
from benchmarks.clients import measure as clients
from benchmarks.report import Figure

SPEED = {"python_loops_per_ms": 10_000.0, "share_of_a_processor": 1.0, "load": 0.5, "flush_us": 100.0}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children cost half a second each to start: here they are calls."""

    def run(module: str, function: str, **arguments: Any) -> dict[str, Any]:
        return getattr(importlib.import_module(f"benchmarks.{module}"), function)(**arguments)

    monkeypatch.setattr(children, "run", run)
    monkeypatch.setattr(machine, "speed", lambda directory: SPEED)


def test_a_payload_has_the_size_that_the_results_say():
    payload, _ = pipeline.Payloads((ours.Order,)).encode(ours.order(12345))
    assert len(payload) == ours.PAYLOAD


def test_embedded_measures_every_engine_and_peer_in_every_round(in_this_process, tmp_path):
    pytest.importorskip("uvloop")
    for peer in ("litequeue", "persistqueue", "huey"):
        pytest.importorskip(peer)
    title, figures, speeds = embedded.measure(tmp_path, 2, embedded.Sizes(300, 300, 20), lambda _: None)
    assert "2 interleaved rounds" in title
    assert len(speeds) == 3
    assert all(len(figure.values) == 2 and min(figure.values) > 0 for figure in figures)
    assert {peer for peer in peers.PEERS if any(figure.name == f"{peer}, handled" for figure in figures)} == {
        *peers.PEERS
    }


def test_sending_and_handling_on_sqlite_are_measured_without_any_peer(tmp_path):
    found = ours.throughput(f"sqlite:///{tmp_path}/bus.db", 300)
    assert set(found) == {"sent_per_s", "send_cpu_us", "handled_per_s", "handle_cpu_us"}
    assert min(found.values()) > 0
    assert pipeline.cost(300)["pipeline_us"] > 0


def test_a_backlog_is_handled_to_its_end_and_its_memory_read_at_every_tenth(in_this_process, tmp_path):
    _, figures, _ = backlog.measure(tmp_path, 1, 500, lambda _: None)
    assert [figure.unit for figure in figures] == ["MB", "MB", "×", "/s", "/s"]


def test_every_step_of_the_sqlite_thread_is_measured(in_this_process, tmp_path):
    _, figures, _ = steps.measure(tmp_path, 1, 250, lambda _: None)
    assert len(figures) == len(steps.STEPS)
    assert min(figure.median for figure in figures) > 0


def test_alone_measures_between_two_processes(tmp_path):
    _, figures, speeds = alone.measure(tmp_path, 1, 5, lambda _: None)
    assert len(figures[0].values) == 1
    assert 0 < figures[0].median <= figures[1].median
    assert set(speeds[0]) == set(SPEED)


def test_the_footprint_is_that_of_fresh_processes(tmp_path):
    _, figures, _ = footprint.measure(tmp_path, 1, 5, lambda _: None)
    assert [figure.unit for figure in figures] == ["ms", "ms", "ms", "MB"]


@pytest.mark.usefixtures("redis_server")
def test_an_engine_is_measured_on_a_server_of_its_own_alone_and_with_a_backlog(in_this_process, monkeypatch, tmp_path):
    monkeypatch.setitem(engines.PLANS, "redis", engines.Plan(100, handled_per_s=1, backlog=100))
    monkeypatch.setattr(alone, "APART", (0.001, 0.002))
    title, figures, speeds = engines.measure("redis", tmp_path, 1, 1.0, lambda _: None)
    assert "flushed every second" in title
    assert "100 messages" in title
    assert [figure.name for figure in figures if figure.at_least] == ["redis://, handled"]
    assert min(figure.median for figure in figures if figure.unit in ("/s", "µs", "ms")) > 0
    assert len(speeds) == 2


@pytest.mark.parametrize("engine", [*engines.PLANS])
def test_every_figure_asked_of_an_engine_is_shown_beside_its_peers(engine):
    plan = engines.PLANS[engine]
    asked = [plan.sent, plan.handled, plan.handled_per_s, engines.SLOWER if plan.alone else None, 60.0, 2.0]
    figures = engines.figures(engine, plan, collections.defaultdict(lambda: [1.0]))
    assert [bound for bound in asked if bound] == [
        figure.at_least or figure.at_most for figure in figures if figure.met is not None
    ]


def test_every_client_whose_upkeep_is_told_can_be_measured():
    for engine, kept in clients.KEPT.items():
        assert list(importlib.import_module(f"benchmarks.clients.{engine}").CLIENTS) == list(kept)


def test_a_client_publishes_and_consumes(nats_server):
    found = clients.throughput("nats", "nats-py, requests", nats_server.url(), 200)
    assert min(found["published"], found["consumed"]) > 0


def test_clients_are_written_as_a_table_into_the_document(tmp_path):
    figures = [
        Figure(f"{client}: {what}", [value], "/s")
        for client, value in (("asyncpg", 9_000.0), ("psycopg", 10.0))
        for what in ("published", "consumed", "restart")
    ]
    report.write("clients-postgresql", "A title.", figures, [SPEED], into=tmp_path)
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- clients: begin -->\nold\n<!-- clients: end -->\nafter\n")
    assert clients.fill_table(document, tmp_path) is True
    assert "| asyncpg | 9,000 | 9,000 | not by itself | Apache-2.0 |" in document.read_text()
    assert clients.fill_table(document, tmp_path / "nothing") is False


def test_a_figure_is_met_by_its_median_only():
    assert Figure("a", [1.0, 50.0, 60.0], "/s", at_least=40).met is True
    assert Figure("a", [1.0, 30.0, 60.0], "/s", at_least=40).met is False
    assert Figure("a", [1.0, 2.0, 60.0], "ms", at_most=5).met is True
    assert Figure("a", [1.0, 6.0, 60.0], "ms", at_most=5).met is False
    assert Figure("a", [1.0], "ms").met is None


def test_results_are_written_as_a_table_and_as_data_and_fill_the_documents_blocks(tmp_path):
    figures = [
        Figure("sent", [10.0, 30.0, 20.0], "/s", at_least=25),
        Figure("cost", [3.0], "µs", at_most=5),
        Figure("free", [1.0], "µs"),
    ]
    report.write("embedded", "A title.", figures, [SPEED], into=tmp_path)
    data = json.loads((tmp_path / "embedded.json").read_text())
    assert [(one["median"], one["met"]) for one in data["figures"]] == [(20.0, False), (3.0, True), (1.0, None)]
    assert data["machine"] == SPEED

    whole, short, plain = tmp_path / "whole.md", tmp_path / "short.md", tmp_path / "plain.md"
    for document in (whole, short):
        document.write_text("before\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nafter\n")
    plain.write_text("no block")
    assert report.fill_blocks(tmp_path, whole, plain) == [whole]
    assert report.fill_blocks(tmp_path, plain, short) == [short]
    assert plain.read_text() == "no block"
    for document in (whole, short):
        text = document.read_text()
        assert text.startswith("before\n<!-- figures: begin -->\n")
        assert text.endswith("\n<!-- figures: end -->\nafter\n")
        assert "10,000 Python loops" in text
        assert "old" not in text
    assert "| sent | 20 /s | 10 – 30 | ≥ 25 | **not met** |" in whole.read_text()
    assert "| sent | 20 /s | ≥ 25 | **not met** |" in short.read_text()
    assert "| cost | 3 µs | ≤ 5 | met |" in short.read_text()


def test_exactly_once_is_measured_beside_the_same_work_without_a_bus(postgresql_server):
    plain = exactly_once.without_bus(postgresql_server.database(), "asyncpg", 20)
    ours = exactly_once.with_bus(postgresql_server.database(), "asyncpg", 20)
    assert min(*plain.values(), *ours.values()) > 0


def test_relays_are_measured_from_the_commit_to_the_handler(tmp_path):
    found = relay.alone(f"sqlite:///{tmp_path}/bus.db", 5, "", handles=True, sends=True)
    assert set(found["committed"]) == set(found["arrived"]) == {"0", "1", "2", "3", "4"}
    assert relay.backlog(f"sqlite:///{tmp_path}/long.db", 1, 50)["per_s"] > 0
    assert relay.backlog(f"sqlite:///{tmp_path}/many.db", 5, 1)["per_s"] > 0
