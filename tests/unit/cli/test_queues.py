"""`easybus queues`, `topics`, `purge`, `doctor`; and how wrong URLs and names are answered."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from easybus.engines.contract import DeclareQueue, Engine, Publication

from .conftest import SOURCE, Shell


def publish(shell: Shell, queue: str, *bodies: bytes, delay: float | None = None) -> None:
    async def work(engine: Engine) -> None:
        assert engine.driver is not None
        results = await engine.driver.publish([Publication(False, queue, body, delay=delay) for body in bodies])
        assert not any(isinstance(result, Exception) for result in results)

    shell.on_engine(work)


def declare(shell: Shell, name: str) -> None:
    async def work(engine: Engine) -> None:
        assert engine.driver is not None
        await engine.driver.declare([DeclareQueue(name)])

    shell.on_engine(work)


def counts(shell: Shell) -> dict[str, tuple[int, int, int]]:
    return {
        each["queue"]: (each["ready"], each["in_flight"], each["delayed"])
        for each in shell.run("queues", "--json").json
    }


def test_queues_counts_what_each_holds(shell: Shell) -> None:
    publish(shell, "emails", b"1", b"2")
    publish(shell, "emails", b"3", delay=60)
    publish(shell, "receipts", b"1")
    assert counts(shell) == {"emails": (2, 0, 1), "receipts": (0, 0, 1)}
    shown = shell.run("queues")
    assert shown.code == 0
    assert [line.split() for line in shown.out.splitlines()] == [
        ["queue", "ready", "in", "flight", "delayed", "dead", "delay"],
        ["emails", "2", "0", "1", "0", "0s"],
        ["receipts", "0", "0", "1", "0", "5s"],
    ]


def test_queues_keeps_watching_until_interrupted(shell: Shell) -> None:
    process = shell.spawn("queues", "--watch", "--json", "--every", "0.1", "--url", shell.url)
    with process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert first["queues"] == second["queues"]
    assert first["at"] < second["at"]
    assert (process.returncode, err) == (130, "")


def test_watching_into_a_pipe_prints_each_look(shell: Shell) -> None:
    process = shell.spawn("queues", "--watch", "--every", "0.1", "--url", shell.url)
    with process:
        assert process.stdout is not None
        looks = [[process.stdout.readline() for _ in range(4)] for _ in range(2)]
        process.terminate()
        process.communicate(timeout=10)
    assert looks[0] == looks[1]
    assert [line.split()[:1] for line in looks[0]] == [["queue"], ["emails"], ["receipts"], []]


def test_topics_shows_who_gets_which_route_keys(shell: Shell) -> None:
    assert shell.run("topics", "--json").json == [
        {"topic": "orders", "bindings": [{"queue": "receipts", "route_key": "paid.#"}]}
    ]
    assert shell.run("topics").out.split()[-3:] == ["orders", "receipts", "paid.#"]


def test_names_with_control_characters_are_shown_escaped(shell: Shell) -> None:
    declare(shell, "evil\x1b[2J[red]")
    shown = shell.run("queues")
    assert "evil\\x1b[2J[red]" in shown.out
    assert "\x1b" not in shown.out


def test_purge_asks_and_removes_only_what_it_said(shell: Shell) -> None:
    publish(shell, "emails", b"1", b"2")
    publish(shell, "receipts", b"1")
    refused = shell.run("purge", "emails", input="n\n")
    assert refused.code == 1
    assert "Remove 2 messages from emails" in refused.err
    assert shell.run("purge", "emails", input="").code == 1
    assert counts(shell)["emails"] == (2, 0, 0)
    assert shell.run("purge", "emails", "--yes", "--json").json == {"queue": "emails", "removed": 2}
    assert counts(shell) == {"emails": (0, 0, 0), "receipts": (0, 0, 1)}


def test_a_wrong_queue_is_answered_with_close_ones(shell: Shell) -> None:
    wrong = shell.run("purge", "emial", "--yes")
    assert wrong.code == 1
    assert wrong.err.endswith("easybus: there is no queue 'emial'; did you mean emails?\n")


def test_doctor_sends_a_message_there_and_back_and_leaves_nothing(shell: Shell) -> None:
    before = shell.run("queues", "--json").json
    report = shell.run("doctor", "--json").json
    assert report["ok"]
    assert [step["step"] for step in report["steps"] if step["ok"]] == [
        "connect",
        "declare a queue",
        "send",
        "receive",
        "drop the queue",
        "disconnect",
    ]
    assert report["capabilities"]["engine"] == shell.url.partition(":")[0]
    assert report["storages"]["dead_letters"]
    assert shell.run("queues", "--json").json == before
    shown = shell.run("doctor")
    assert shown.code == 0
    assert "atomic move" in shown.out


def test_doctor_fails_where_nothing_can_be_opened(shell: Shell) -> None:
    done = shell.run("doctor", "--url", f"sqlite:///{shell.folder}/no/such/folder/shop.db", "--json", url=False)
    assert done.code == 1
    report = json.loads(done.out)
    assert not report["ok"]
    assert report["steps"][0]["step"] == "connect"
    assert "folder" in report["steps"][0]["error"]


def test_a_mistyped_file_is_not_made(shell: Shell) -> None:
    typo = shell.folder / "shpo.db"
    wrong = shell.run("queues", "--url", f"sqlite:///{typo}", url=False)
    assert wrong.code == 1
    assert "did you mean shop.db?" in wrong.err
    assert not typo.exists()


def test_a_path_is_read_out_of_the_url_as_the_bus_reads_it(shell: Shell) -> None:
    shell.file.rename(shell.folder / "my café.db")
    shell.url = f"sqlite:///{shell.folder}/my%20caf%C3%A9.db"
    assert set(counts(shell)) == {"emails", "receipts"}
    wrong = shell.run("queues", "--url", shell.url.replace("my", "our"), url=False)
    assert "did you mean my café.db?" in wrong.err


def test_a_wrong_scheme_is_answered_with_those_there_are(shell: Shell) -> None:
    wrong = shell.run("queues", "--url", "sqlight:///shop.db", url=False)
    assert wrong.code == 1
    assert "sqlite://" in wrong.err


def test_passwords_are_never_printed(shell: Shell) -> None:
    for words in (["queues"], ["doctor"], ["doctor", "--json"], ["dead", "list"], ["tx", "list"]):
        done = shell.run(*words, "--url", "sqlite://shop:s3cret@host/shop.db", url=False)
        assert done.code == 1
        assert done.err or done.out
        assert "s3cret" not in done.out + done.err


def test_without_a_url_or_an_app_it_is_wrong_usage(shell: Shell) -> None:
    wrong = shell.run("queues", url=False)
    assert wrong.code == 2
    assert "EASYBUS_URL" in wrong.err
    both = shell.run("queues", "--app", "shop:bus")
    assert both.code == 2


def test_the_url_can_come_from_the_environment(shell: Shell) -> None:
    done = shell.process("queues", "--json", EASYBUS_URL=shell.url)
    assert [each["queue"] for each in done.json] == ["emails", "receipts"]


def test_unknown_commands_and_options_exit_with_2(shell: Shell) -> None:
    assert shell.process("quues").code == 2
    assert shell.process("queues", "--no-such").code == 2


def test_without_its_extra_the_command_line_names_the_line_that_installs_it(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    done = shell.process("queues", PYTHONPATH=f"{tmp_path}:{SOURCE}")
    assert (done.code, done.out) == (1, "")
    assert done.err == "easybus: the command line needs typer: pip install 'easybus[cli]'\n"
