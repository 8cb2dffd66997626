"""The private servers do what tests of engines stand on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.servers import HOST, Server, find_program, free_port, missing

ECHO = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if not os.fork():  # a child that would outlive a plain kill
    os.setsid()
    os.read(os.pipe()[0], 1)
while True:
    with listening.accept()[0] as one: one.sendall(one.recv(10))
"""


class Echo(Server):
    name = "echo"

    def command(self) -> list[str]:
        return [sys.executable, "-c", ECHO, str(self.port)]


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.remove()


def until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within five seconds."""
    deadline = time.monotonic() + 5.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def states(server: Echo) -> list[str]:
    """The states of the server's processes, as Linux writes them."""
    return [state(pid) for pid in running(str(server.folder))]


def state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def running(folder: str) -> list[str]:
    """The processes whose working folder this is."""
    found: list[str] = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == folder and state(pid) != "Z":
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_killed_server_leaves_no_process_and_starts_again_on_its_port(echo: Echo) -> None:
    echo.start()
    assert until(lambda: len(running(str(echo.folder))) == 2)
    echo.kill()
    assert until(lambda: running(str(echo.folder)) == [])
    assert until(lambda: not echo.port_is_open())
    echo.start()
    assert echo.port_is_open()


def test_a_frozen_server_answers_again_when_thawed(echo: Echo) -> None:
    echo.start()
    assert until(lambda: len(states(echo)) == 2)
    echo.freeze()
    assert until(lambda: states(echo) == ["T", "T"])
    echo.thaw()
    assert echo.up
    assert echo.port_is_open()


def test_one_that_ends_at_once_says_why(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "command", lambda: [sys.executable, "-c", "raise SystemExit('no licence')"])
    with pytest.raises(RuntimeError, match="no licence"):
        echo.start()
    echo.remove()
    assert not echo.folder.exists()


def test_ports_are_free_and_programs_are_looked_for_in_folders_before_path() -> None:
    assert 1024 < free_port() < 65536
    assert HOST == "127.0.0.1"
    folder = os.path.dirname(os.path.realpath(sys.executable))
    program = os.path.basename(os.path.realpath(sys.executable))
    assert find_program(program, folders=("/nowhere", folder)) == os.path.join(folder, program)
    assert find_program("there-is-no-such-program") is None


def test_a_missing_server_skips_on_a_laptop_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        missing("it")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception):
        missing("it")


def test_a_program_that_fails_tells_what_it_printed(echo: Echo) -> None:
    assert echo.run(sys.executable, "-c", "print('hello')") == "hello\n"
    with pytest.raises(RuntimeError, match="broken"):
        echo.run(sys.executable, "-c", "raise SystemExit('broken')")
