"""A password is in no log, repr, error, traceback, output, or process list: of each engine, right or wrong, there or
not."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from tests.servers import HOST, free_port
from tests.servers.urls import SERVERS, as_user, at, url_of
from tests.unit.cli import conftest
from tests.unit.cli.conftest import Shell

from easybus import Bus, EasybusError
from easybus.clock import SystemClock
from easybus.engines.registry import create
from easybus.testing.driver_base import fresh

WRONG = "canary/wrong?é"
APP = """
import logging, os, sys
from easybus import Bus
logging.basicConfig(level=logging.DEBUG)
bus = Bus(service="shop", storage="memory://keys")
jobs = bus.queue(os.environ["QUEUE"], int)

@jobs.handler
async def handle(number: int) -> None:
    print("handled", number, file=sys.stderr, flush=True)
"""


class Place(NamedTuple):
    """A server's URL, and what of it must never be seen."""

    url: str
    secrets: tuple[str, ...]

    def unseen_in(self, text: str) -> None:
        assert [secret for secret in self.secrets if secret in text] == []


shell = conftest.shell


@pytest.fixture(params=SERVERS)
def right(request: pytest.FixtureRequest) -> Place:
    url = url_of(request.getfixturevalue(f"{request.param}_server"))
    password = re.search(r":([^:@/]+)@", url)
    assert password is not None
    return Place(url, (password[1],))


@pytest.fixture(params=["right", "wrong password", "wrong host", "wrong option"])
def place(request: pytest.FixtureRequest, right: Place) -> Place:
    user = re.search(r"//([^:]*):", right.url)
    assert user is not None
    wrong = Place(
        as_user(right.url, f"{user[1]}:{quote(WRONG, safe='')}"), (*right.secrets, WRONG, quote(WRONG, safe=""))
    )
    match request.param:
        case "right":
            return right
        case "wrong password":
            return wrong
        case "wrong host":
            return wrong._replace(url=at(wrong.url, f"{HOST}:{free_port()}"))
        case _:
            return wrong._replace(url=f"{wrong.url}{'&' if '?' in wrong.url else '?'}colour=red")


async def test_a_password_is_in_no_log_error_traceback_warning_or_repr(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        bus = Bus(place.url, storage=f"memory://{fresh('keys')}")
        jobs = bus.queue(fresh("jobs"), int)
        shown += [repr(bus), repr(jobs)]
        try:
            engine = create(place.url, SystemClock())
            shown += [repr(engine), str(engine), engine.url, repr(vars(engine)), repr(engine.driver)]
            async with bus:
                await jobs.send(1)
                shown += [repr(bus), repr(bus.driver)]
        except EasybusError as error:
            shown += ["".join(traceback.format_exception(error)), *_chain(error)]
        with contextlib.suppress(EasybusError):  # said already
            shown.append(repr(await bus.check()))
    place.unseen_in("\n".join([*shown, *map(str, warned), caplog.text]))


def _chain(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield f"{error!r} {error} {error.args!r}"
        error = error.__cause__ or error.__context__


def test_no_command_prints_a_password(place: Place, shell: Shell) -> None:
    (shell.folder / "shop.py").write_text(APP)
    environment = {"EASYBUS_URL": place.url, "QUEUE": fresh("jobs")}
    for words in (["queues"], ["queues", "--json"], ["topics"], ["doctor"], ["doctor", "--json"], ["dead", "list"],
                  ["tx", "list"], ["schema"], ["purge", "none", "--yes"]):  # fmt: skip
        done = shell.run(*words, "--url", place.url, url=False)
        place.unseen_in(done.out + done.err)
        assert done.out + done.err
    for words in (["check"], ["check", "--json"], ["check", "--offline"], ["declare"]):
        done = shell.run(*words, "shop:bus", url=False, **environment)
        place.unseen_in(done.out + done.err)
        assert done.out + done.err


@pytest.mark.parametrize(
    "url",
    [
        "nats://canary-token@{place}?timeout=1",
        "redis+sentinel://:canary-1@{place}/mymaster?sentinel_password=canary-2&timeout=1",
        "redis+sentinel://:canary-1@{place}/mymaster?sentinel_password=canary-2&colour=red",
    ],
)
def test_no_command_prints_a_token_or_the_password_of_a_sentinel(url: str, shell: Shell) -> None:
    for words in (["queues"], ["doctor"], ["doctor", "--json"], ["dead", "list"]):
        done = shell.run(*words, "--url", url.format(place=f"{HOST}:{free_port()}"), url=False)
        assert done.code == 1
        assert "canary" not in done.out + done.err


@pytest.mark.parametrize("password", ["a/canary", "1/canary", "1?canary", "se?canary", "1#canary", "1?prefix=canary"])
@pytest.mark.parametrize(
    "url", ["redis://u:{}@host/0", "postgresql://u:{}@host/db", "nats://{}@host", "amqp://u:{}@host"]
)
def test_no_command_prints_a_password_that_cuts_its_url_short(url: str, password: str, shell: Shell) -> None:
    (shell.folder / "shop.py").write_text(APP)
    environment = {"EASYBUS_URL": url.format(password), "QUEUE": "jobs"}
    commands = [["queues"], ["doctor", "--json"], ["schema"]]
    done = [shell.run(*words, "--url", url.format(password), url=False) for words in commands]
    done += [shell.run(*words, "shop:bus", url=False, **environment) for words in (["check"], ["declare"], ["relay"])]
    for one in done:
        assert one.code == 1
        assert "%2F" in one.out + one.err
        assert "canary" not in one.out + one.err


def test_workers_show_no_password_in_the_process_list_nor_in_what_they_log(right: Place, shell: Shell) -> None:
    (shell.folder / "shop.py").write_text(APP)
    queue = fresh("jobs")
    environment = {"EASYBUS_URL": right.url, "QUEUE": queue}
    output = shell.folder / "output.log"
    with output.open("w") as log, _running(shell, log, "run", "shop:bus", "--workers", "2", **environment) as process:
        assert shell.process("send", "shop:bus", f"queue:{queue}", "1", **environment).code == 0
        _until(lambda: "handled 1" in output.read_text(), output)
        with _running(shell, log, "queues", "--watch", "--every", "0.1", **environment) as watching:
            family = [*_family(process.pid), *_family(watching.pid)]
            lists = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in family]
    assert len(family) >= 4
    assert any("--supervised" in line for line in lists)
    right.unseen_in("\n".join(lists) + output.read_text())


@contextlib.contextmanager
def _running(shell: Shell, log: Any, *words: str, **environment: str) -> Iterator[subprocess.Popen[Any]]:
    process = shell.spawn(*words, output=log, **environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _until(condition: Any, output: Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
