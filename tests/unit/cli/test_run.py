"""`easybus run`, `send` and `declare`: the app's own bus, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from easybus.engines.contract import Engine

from .conftest import Shell

APP = """
import os
from dataclasses import dataclass
from easybus.bus import Bus

@dataclass
class Email:
    to: str

@dataclass
class Paid:
    total: int

@dataclass
class Refunded:
    total: int

bus = Bus("sqlite:///shop.db", service="shop")
emails = bus.queue("emails", Email)
orders = bus.topic("orders", Paid, Refunded)
other = bus.queue("other")
nothing = 3

def create_bus():
    return bus

async def send_email_later():
    return bus

def broken():
    raise RuntimeError("no configuration")

@emails.handler
async def send_email(email: Email) -> None:
    with open("done.log", "a") as log:
        log.write(f"{os.getpid()} {email.to}\\n")

@orders.handler("totals", Paid)
async def count(event: Paid) -> None:
    with open("done.log", "a") as log:
        log.write(f"{os.getpid()} total\\n")
"""


@pytest.fixture
def app(shell: Shell) -> Shell:
    (shell.folder / "shop.py").write_text(APP)
    return shell


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def handled(shell: Shell) -> list[str]:
    log = shell.folder / "done.log"
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


@contextmanager
def running(shell: Shell, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = shell.spawn("run", "shop:bus", *words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def send(shell: Shell, to: str) -> None:
    assert shell.process("send", "shop:bus", "queue:emails", f'{{"to": "{to}"}}').code == 0


def test_what_is_sent_is_handled_until_sigterm(app: Shell) -> None:
    sent = app.process("send", "shop:bus", "queue:emails", '{"to": "a@b"}', "--id", "m1", "--json")
    assert sent.json == {"id": "m1", "to": "queue:emails", "route_key": "", "headers": {"type": "Email"}}
    process = app.spawn("run", "shop:bus")
    until(lambda: handled(app) == ["a@b"], "the message is handled")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_only_the_named_queue_is_handled(app: Shell) -> None:
    send(app, "a@b")
    wrong = app.process("run", "shop:bus", "--only", "emial", "--workers", "2")
    assert wrong.code == 1
    assert wrong.err == "easybus: shop:bus has no handler for queue 'emial'; did you mean emails?\n"
    with running(app, "--only", "totals"):
        app.process("send", "shop:bus", "orders", '{"total": 950}', "--type", "Paid")
        until(lambda: handled(app) == ["total"], "the event is handled")
    (emails,) = (each for each in app.run("queues", "--json").json if each["queue"] == "emails")
    assert (emails["ready"], handled(app)) == (1, ["total"])


def test_a_worker_that_dies_is_started_again_and_all_stop_together(app: Shell) -> None:
    with running(app, "--workers", "2") as process:
        until(lambda: len(children(process)) == 2, "two workers")
        before = children(process)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(children(process)) == 2 and before[0] not in children(process), "a new worker")
        send(app, "a@b")
        until(lambda: handled(app) == ["a@b"], "the message is handled")
        workers = children(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "worker 1 ended (signal 9); started again in 1 s" in err
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def test_a_worker_that_has_not_come_to_its_own_handling_of_signals_stops_well_too(app: Shell) -> None:
    slow = "import time; open('begun', 'w').close(); time.sleep(60)\n"
    (app.folder / "shop.py").write_text(slow + APP)
    with running(app, "--workers", "1", "--reload") as process:  # with it the supervisor does not load the code
        until((app.folder / "begun").exists, "the worker loads its code")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in err) == (0, False), err


def test_workers_stop_when_their_supervisor_is_killed(app: Shell) -> None:
    with running(app, "--workers", "1", "--reload") as process:
        until(lambda: len(children(process)) == 1, "a worker")
        (worker,) = children(process)
        send(app, "a@b")
        until(lambda: handled(app) == ["a@b"], "the message is handled")
        process.kill()
        process.wait(timeout=10)
        until(lambda: not alive(worker), "the worker is gone")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_reload_starts_anew_when_the_code_changes(app: Shell) -> None:
    with running(app, "--reload") as process:
        send(app, "a@b")
        until(lambda: handled(app) == ["a@b"], "the old code runs")
        (app.folder / "shop.py").write_text(APP.replace("{email.to}", "new-{email.to}"))
        until(lambda: len(children(process)) == 1, "a worker")
        until(lambda: _said(app, "new-c@d"), "the new code runs")


def _said(shell: Shell, text: str) -> bool:
    send(shell, "c@d")
    return text in handled(shell)


def test_with_json_every_line_of_the_log_is_an_object_the_workers_and_their_ends_too(app: Shell) -> None:
    text = APP.replace(
        "async def send_email(email: Email) -> None:",
        """async def send_email(email: Email) -> None:
    raise ValueError("no\\x1b[2J")
""",
    )
    (app.folder / "shop.py").write_text(text)
    send(app, "a@b")
    process = app.spawn("run", "shop:bus", "--workers", "2", "--json")
    assert process.stderr is not None
    lines: list[dict[str, object]] = []
    said = ""
    while "ValueError" not in said or said.count("handling emails, totals of") < 2:
        lines.append(json.loads(process.stderr.readline()))
        said += f"{lines[-1]['message']}\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    lines += [json.loads(line) for line in err.splitlines()]
    assert (process.returncode, out) == (0, "")
    (failed,) = (line for line in lines if "ValueError" in str(line["message"]))
    assert (failed["level"], failed["logger"]) == ("WARNING", "easybus")
    assert "no\x1b[2J" in str(failed["message"]), "as it is, in JSON's own escape"
    assert {"worker 1 started", "worker 2 started"} <= {str(line["message"]).partition(" (")[0] for line in lines}
    assert all({"at", "message"} <= line.keys() for line in lines)


def test_an_app_is_found_by_its_name_or_answered_with_close_ones(app: Shell) -> None:
    cases = {
        "shop:buss": "shop has no 'buss'; did you mean bus?",
        "shpo:bus": "did you mean shop?",
        "shop:nothing": "shop:nothing is a int, no Bus; there are the names bus",
        "shop:create_bus": "shop:create_bus is no bus but a function; if it returns one, add --factory",
        "shop:Email": "shop:Email is no bus but a class",
        "shop.py:bus": "'shop.py' is a file; write its module, as Python imports it from here: shop:bus",
        "./src/shop.py:bus": "as Python imports it from here: src.shop:bus",
    }
    for name, says in cases.items():
        wrong = app.run("declare", name, url=False)
        assert wrong.code == 1
        assert says in wrong.err
        assert "Traceback" not in wrong.err
    broken = app.run("declare", "shop:broken", "--factory", url=False)
    assert broken.code == 1
    assert "RuntimeError: no configuration" in broken.err
    assert "shop.py:" in broken.err
    unawaited = app.run("declare", "shop:send_email_later", "--factory", url=False)
    assert "shop:send_email_later is an async function; a factory is a plain one" in unawaited.err
    for name in ("shop", "shop:", ":bus"):
        assert app.run("declare", name, url=False).code == 2
    assert app.run("declare", url=False).code == 2


def test_a_module_that_cannot_be_imported_is_told_with_its_line(app: Shell) -> None:
    (app.folder / "broken.py").write_text("x = 1\ny = z\n")
    wrong = app.run("run", "broken:bus", url=False)
    assert wrong.code == 1
    assert "NameError: name 'z' is not defined" in wrong.err
    assert "broken.py:2" in wrong.err
    (app.folder / "needy.py").write_text("import no_such_package\n")
    wrong = app.run("run", "needy:bus", url=False)
    assert "needs 'no_such_package', which is not installed" in wrong.err


def test_declare_creates_everything_and_twice_is_harmless(app: Shell) -> None:
    for _ in range(2):
        done = app.run("declare", "shop:create_bus", "--factory", "--json", url=False)
        assert done.json == {"topics": ["orders"], "queues": ["emails", "other", "totals"]}
    bindings = {each["topic"]: each["bindings"] for each in app.run("topics", "--json").json}
    assert {"queue": "totals", "route_key": "#"} in bindings["orders"]


def test_operators_commands_take_the_apps_url(app: Shell) -> None:
    assert app.run("declare", "shop:bus", url=False).code == 0
    done = app.run("queues", "--json", EASYBUS_APP="shop:bus", url=False)
    assert "totals" in [each["queue"] for each in done.json]
    assert app.run("dead", "list", "--app", "shop:bus", "--json", url=False).json == []


def test_a_payload_is_checked_before_anything_is_sent(app: Shell) -> None:
    refused = [
        (("shop:bus", "queue:emails", '{"to": 7}'), 1, "Email"),
        (("shop:bus", "queue:emails", "{broken"), 1, "Email"),
        (("shop:bus", "orders", '{"total": 1}'), 2, "--type: Paid, Refunded"),
        (("shop:bus", "orders", '{"total": 1}', "--type", "Lost"), 1, "'Lost'"),
        (("shop:bus", "ordres", "{}"), 1, "did you mean orders?"),
        (("shop:bus", "emails", "{}"), 1, "no topic 'emails', but a queue of that name: write queue:emails"),
        (("shop:bus", "queue:orders", "{}"), 1, "no queue 'orders', but a topic of that name: write orders"),
        (("shop:bus", "orders", "{}", "--header", "novalue"), 2, "name=value"),
        (("shop:bus", "orders", "{}", "--delay", "soon"), 2, "write 30s"),
        (("orders",), 2, "EASYBUS_APP"),
        (("orders", "{}"), 2, "EASYBUS_APP"),
    ]
    for words, code, says in refused:
        done = app.run("send", *words, url=False)
        assert (done.code, done.out) == (code, ""), words
        assert says in done.err, words
    assert all(each["ready"] == each["delayed"] == 0 for each in app.run("queues", "--json").json)


def test_send_carries_type_route_key_headers_and_delay(app: Shell) -> None:
    words = [
        "orders",
        '{"total": 950}',
        "--type",
        "Paid",
        "-k",
        "paid.eu",
        "-H",
        "trace=x=1",
        "--delay",
        "1h",
        "--json",
    ]
    sent = app.run("send", *words, EASYBUS_APP="shop:bus", url=False).json
    assert (sent["route_key"], sent["headers"]) == ("paid.eu", {"trace": "x=1", "type": "Paid"})

    async def waiting(engine: Engine) -> int | None:
        assert engine.driver is not None
        return sum([(await engine.driver.stats(queue.name)).delayed or 0 for queue in await engine.driver.queues()])

    assert app.on_engine(waiting) >= 1  # type: ignore[operator]


def test_an_app_without_handlers_is_not_run(app: Shell) -> None:
    (app.folder / "idle.py").write_text('from easybus.bus import Bus\nbus = Bus("sqlite:///shop.db")\n')
    done = app.run("run", "idle:bus", url=False)
    assert done.code == 1
    assert "handles nothing" in done.err


def test_workers_are_refused_where_they_would_share_nothing(app: Shell) -> None:
    (app.folder / "alone.py").write_text(APP.replace("sqlite:///shop.db", "memory://"))
    done = app.run("run", "alone:bus", "--workers", "2", url=False)
    assert done.code == 1
    assert "lives in one process" in done.err


def test_what_a_log_line_quotes_cannot_steer_the_terminal(app: Shell) -> None:
    text = APP.replace(
        "async def send_email(email: Email) -> None:",
        "async def send_email(email: Email) -> None:\n    raise ValueError(chr(27) + '[2J')\n",
    )
    (app.folder / "shop.py").write_text(text)
    send(app, "a@b")
    process = app.spawn("run", "shop:bus")
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    line = next(line for line in lines if "ValueError" in line)
    process.terminate()
    process.communicate(timeout=20)
    assert "\\x1b[2J" in line
    assert "\x1b" not in line


FAILS = """async def send_email(email: Email) -> None:
    logging.getLogger("shop").info("not %d", "a number")
    try:
        raise ValueError(f"cannot reach redis://user:{chr(115)}3cret@there/{chr(27)}[2J")
    except ValueError:
        logging.getLogger("shop").exception("no email")
        raise
"""


@pytest.fixture
def failing(app: Shell) -> Shell:
    """An app whose every email fails at once and for good, and is said with its traceback."""
    text = APP.replace("async def send_email(email: Email) -> None:\n", f"{FAILS}\n").replace(
        "import os", "import logging, os"
    )
    text = text.replace("bus import Bus", "bus import Bus; from easybus import never").replace(
        "@emails.handler", "@emails.handler(retry=never())"
    )
    (app.folder / "shop.py").write_text(text)
    send(app, "a@b")
    return app


@pytest.mark.parametrize("words", [("--json",), (), ("--json", "--workers", "2"), ("--workers", "2")], ids=" ".join)
def test_a_log_that_cannot_be_written_stops_nothing(failing: Shell, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full, failing.spawn("run", "shop:bus", *words, output=full) as process:
        try:
            until(lambda: len(failing.run("dead", "list", "--json").json) == 1, "the message is a dead letter")
            assert process.poll() is None
        finally:
            process.terminate()


@pytest.mark.parametrize("words", [("--json",), ()], ids=" ".join)
def test_a_log_shows_no_password_of_an_error_and_no_fault_in_a_call_to_it_ends_anything(
    failing: Shell, words: tuple[str, ...]
) -> None:
    with running(failing, *words) as process:
        until(lambda: len(failing.run("dead", "list", "--json").json) == 1, "the message is a dead letter")
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert "redis://user:***@there" in err
    assert "s3cret" not in err
    if words:
        (line,) = (json.loads(line) for line in err.splitlines() if '"no email"' in line)
        assert "ValueError: cannot reach redis://user:***@there" in line["traceback"]
