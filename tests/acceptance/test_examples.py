"""The examples that people copy: their own tests, and each of them for real, with a worker killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psycopg
import pytest
from tests.servers import HOST, free_port
from tests.servers.postgresql import PostgresqlServer

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 90.0
"""Seconds in which a thing must have come about."""


class Example:
    """One example's folder, its environment, and the processes that were started in it."""

    def __init__(self, name: str, logs: Path, **env: str) -> None:
        self.folder = EXAMPLES / name
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("EASYBUS")} | env
        self.env |= {"PYTHONPATH": str(self.folder), "PYTHONUNBUFFERED": "1"}
        self.logs = logs
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *module: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        with (self.logs / f"{len(self.started)}-{module[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=cwd or self.folder, env=self.env, stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def run(self, *module: str, cwd: Path | None = None) -> str:
        """A command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=cwd or self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{module}\n{done.stdout}{done.stderr}{self.logged()}"
        return done.stdout

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Wait until `look` returns something true, and return that."""
        deadline = time.monotonic() + PATIENCE
        while not (found := look()):
            assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}{self.logged()}"
            time.sleep(0.1)
        return found

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM: it ends what it has in hand, and cleanly."""
        process.send_signal(signal.SIGTERM)
        # uvicorn raises the signal again when it has shut down.
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM), self.logged()

    def logged(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text()}" for path in sorted(self.logs.glob("*.log")))

    def destroy(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def dead(self, *options: str, cwd: Path | None = None) -> list[dict[str, Any]]:
        """What `easybus dead list` shows."""
        return json.loads(self.run("easybus.cli", "dead", "list", *options, "--json", cwd=cwd))


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Callable[..., Example]]:
    made: list[Example] = []

    def make(name: str, **env: str) -> Example:
        made.append(Example(name, tmp_path, **env))
        return made[-1]

    yield make
    for each in made:
        each.destroy()


def call(method: str, url: str, body: object = None) -> Any:
    """What the server answers to a request; None while it is not there, or says 404."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            text = response.read()
            return json.loads(text) if text else {}
    except URLError as error:
        if getattr(error, "code", 404) == 404:
            return None
        raise


@contextmanager
def held(database: str, lock: str) -> Iterator[Callable[[], bool]]:
    """Hold this lock: handlers that want it stand still in the middle. Gives a question: does one stand still?"""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(database) as holder, psycopg.connect(database, autocommit=True) as looker:
        holder.execute(lock)
        yield lambda: looker.execute(waiting).fetchone() is not None


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["fastapi_shop", "flask_shop", "script"])
def test_the_examples_own_tests_pass(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "tests")],
        cwd=EXAMPLES / name,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


@pytest.mark.kills
@pytest.mark.timeout(300)
def test_fastapi_orders_are_reserved_once_though_the_worker_is_killed(
    example: Callable[..., Example], postgresql_server: PostgresqlServer
) -> None:
    database = postgresql_server.database()
    shop = example("fastapi_shop", SHOP_DATABASE=database)
    shop.run("shop.models")
    app = ("--app", "shop.bus:create_bus", "--factory")
    shop.run("easybus.cli", "check", "shop.bus:create_bus", "--factory")
    port = free_port()
    web = shop.start("uvicorn", "--factory", "shop.web:create_app", "--host", HOST, "--port", str(port))
    url = f"http://{HOST}:{port}"
    shop.until("the web answers", lambda: call("POST", f"{url}/items/book/deliveries", {"quantity": 100}) is not None)

    def order(item: str) -> str:
        return call("POST", f"{url}/orders", {"item": item, "quantity": 1})["id"]

    def reserved(id: str) -> bool:
        return call("GET", f"{url}/orders/{id}")["reserved"]

    worker = shop.start("easybus.cli", "run", "--factory", "shop.bus:create_bus")
    with held(database, "SELECT 1 FROM item WHERE name = 'book' FOR UPDATE") as one_waits:
        ids = [order("book") for _ in range(8)]
        shop.until("handlers stand in the middle", one_waits)
        worker.kill()
        worker.wait()
        assert not any(reserved(each) for each in ids)

    worker = shop.start("easybus.cli", "run", "--factory", "shop.bus:create_bus")
    shop.until("all are reserved", lambda: all(reserved(each) for each in ids))
    with psycopg.connect(database) as db:
        assert db.execute("SELECT \"left\" FROM item WHERE name = 'book'").fetchone() == (92,)

    atlas = order("atlas")
    [letter] = shop.until("a dead letter", lambda: shop.dead(*app))
    assert (letter["queue"], letter["reason"], letter["message"]) == ("stock", "there is no 'atlas'", True)
    call("POST", f"{url}/items/atlas/deliveries", {"quantity": 1})
    assert not reserved(atlas)
    shop.run("easybus.cli", "dead", "retry", letter["id"], *app)
    shop.until("the mended order is reserved", lambda: reserved(atlas))
    shop.until("no dead letter is left", lambda: shop.dead(*app) == [])
    shop.stop(worker)
    shop.stop(web)
    assert "SIGTERM: finishing what is in hand" in shop.logged()
    assert "Application shutdown complete." in shop.logged()


@pytest.mark.kills
@pytest.mark.timeout(300)
def test_flask_orders_have_one_invoice_though_the_worker_is_killed(
    example: Callable[..., Example], postgresql_server: PostgresqlServer
) -> None:
    database = postgresql_server.database()
    shop = example("flask_shop", SHOP_DATABASE=database)
    shop.run("shop.models")
    app = ("--app", "shop.bus:create_bus", "--factory")
    shop.run("easybus.cli", "check", "shop.bus:create_bus", "--factory")
    port = free_port()
    web = shop.start("gunicorn", "--preload", "--workers", "2", "--bind", f"{HOST}:{port}", "shop.web:create_app()")
    url = f"http://{HOST}:{port}"

    def order(customer: str) -> str | None:
        answer = call("POST", f"{url}/orders", {"customer": customer, "amount": "9.50"})
        return answer and answer["id"]

    def invoice(id: str) -> Any:
        return call("GET", f"{url}/orders/{id}/invoice")

    ids = [shop.until("the web answers", lambda: order("ann"))]
    worker = shop.start("easybus.cli", "run", "--factory", "shop.bus:create_bus")
    with held(database, "LOCK TABLE invoice IN SHARE MODE") as one_waits:  # it may be read, and not written
        ids += [order("ann") for _ in range(8)]
        shop.until("handlers stand in the middle", one_waits)
        worker.kill()
        worker.wait()

    worker = shop.start("easybus.cli", "run", "--factory", "shop.bus:create_bus")
    shop.until("all have invoices", lambda: all(invoice(each) for each in ids))
    with psycopg.connect(database) as db:
        assert db.execute('SELECT count(*), count(DISTINCT "order") FROM invoice').fetchone() == (9, 9)

    nobody = order("")
    assert nobody is not None
    [letter] = shop.until("a dead letter", lambda: shop.dead(*app))
    assert (letter["queue"], letter["reason"]) == ("invoices", "no customer to write to")
    payload = json.loads(letter["payload"]) | {"customer": "bob"}
    shop.run("easybus.cli", "dead", "edit", letter["id"], "--payload", json.dumps(payload), "--retry", *app)
    assert shop.until("the mended order has an invoice", lambda: invoice(nobody))["text"] == "bob: 9.50"
    shop.until("no dead letter is left", lambda: shop.dead(*app) == [])
    waiting = json.loads(shop.run("easybus.cli", "queues", *app, "--json"))
    assert {each["queue"]: each["delayed"] for each in waiting}["payments-due"] == 10
    shop.stop(worker)
    shop.stop(web)


@pytest.mark.kills
@pytest.mark.timeout(300)
def test_the_script_charges_once_though_the_worker_is_killed(example: Callable[..., Example], tmp_path: Path) -> None:
    script = example("script")
    lines = [f"{number},{'ann' if number % 2 else 'bob'},10" for number in range(400)]
    (tmp_path / "orders.csv").write_text("\n".join([*lines, "400,eve,-10"]))
    assert script.run("orders", "orders.csv", cwd=tmp_path) == "placed 401\n"
    assert script.run("orders", "orders.csv", cwd=tmp_path) == "placed 0\n"

    def charged() -> dict[str, int]:
        with closing(sqlite3.connect(tmp_path / "orders.db", timeout=30)) as db:
            return dict(db.execute("SELECT customer, cents FROM account").fetchall())

    for _ in range(2):
        worker = script.start("easybus.cli", "run", "orders:bus", cwd=tmp_path)
        before = sum(charged().values())
        script.until("some more are charged", lambda before=before: sum(charged().values()) > before)
        worker.kill()
        worker.wait()
    assert sum(charged().values()) < 4000, "killed in the middle"

    worker = script.start("easybus.cli", "run", "orders:bus", cwd=tmp_path)
    script.until("all are charged", lambda: charged() == {"ann": 2000, "bob": 2000})
    at = ("--url", "sqlite:///orders.db")
    [letter] = script.until("a dead letter", lambda: script.dead(*at, cwd=tmp_path))
    assert letter["reason"] == "-10 cents cannot be charged"
    payload = json.loads(letter["payload"]) | {"cents": 10}
    edit = ("edit", letter["id"], "--payload", json.dumps(payload), "--retry")
    script.run("easybus.cli", "dead", *edit, *at, cwd=tmp_path)
    script.until("the mended order is charged", lambda: charged() == {"ann": 2000, "bob": 2000, "eve": 10})
    script.until("no dead letter is left", lambda: script.dead(*at, cwd=tmp_path) == [])
    script.stop(worker)
