"""The example `django_shop` as it stands, on SQLite and PostgreSQL: its own tests, and processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import easybus

SHOP = Path(__file__).parents[2] / "examples" / "django_shop"


class Shop:
    """The project, its database, and its processes."""

    def __init__(self, database: str, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASYBUS", "DJANGO"))}
        path = str(Path(easybus.__file__).parent.parent)
        self.env = kept | {"SHOP_DATABASE": database, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self.log = folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "manage.py", *words],
            cwd=SHOP, env=self.env, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout or done.stderr

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "manage.py", *words], cwd=SHOP, env=self.env, stdout=log, stderr=log
            )
        self.processes.append(started)
        return started

    def order(self, customer: str) -> int:
        body = json.dumps({"customer": customer, "cents": 950}).encode()
        deadline = time.monotonic() + 30.0
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/orders/", data=body)
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return int(json.load(answer)["order"])
            except urllib.error.HTTPError as error:
                raise AssertionError(self.log.read_text()) from error
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def receipts(self) -> list[int]:
        code = "from shop.orders.models import Receipt; print(sorted(Receipt.objects.values_list('order', flat=True)))"
        return json.loads(self("shell", "-v", "0", "-c", code).strip().splitlines()[-1])

    def dead(self) -> list[str]:
        return [letter["reason"] for letter in json.loads(self("easybus", "dead", "list", "--json"))]


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "sqlite":
        shop = Shop(str(tmp_path / "shop.sqlite3"), tmp_path)
    else:
        shop = Shop(request.getfixturevalue("postgresql_server").database(), tmp_path)
    yield shop
    for process in shop.processes:
        process.kill()
        process.wait()


def test_the_django_shops_own_tests_pass(shop: Shop) -> None:
    assert "Found 4 test(s)" in shop("test", "--noinput")  # exit 0: they passed


@pytest.mark.kills
def test_django_orders_have_one_receipt_though_the_worker_is_killed(shop: Shop) -> None:
    shop("migrate", "--verbosity", "0")
    shop.start("runserver", "--noreload", f"127.0.0.1:{shop.port}")
    worker = shop.start("easybus", "run")
    orders = [shop.order("ann") for _ in range(8)]
    worker.send_signal(signal.SIGKILL)
    orders += [shop.order("bob") for _ in range(2)]
    shop.order("")
    again = shop.start("easybus", "run")
    deadline = time.monotonic() + 45.0
    while shop.receipts() != orders or shop.dead() != ["an order of nobody"]:
        assert time.monotonic() < deadline, shop.log.read_text()
        time.sleep(0.5)
    again.send_signal(signal.SIGTERM)
    assert again.wait(20) == 0
