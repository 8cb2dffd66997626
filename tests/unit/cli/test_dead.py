"""`easybus dead`: found, mended, marked, deleted; and nothing by mistake."""

from __future__ import annotations

import stat
import time

import pytest

from easybus.engines.contract import DeadLetter, Engine
from easybus.message import Message

from .conftest import Shell


def letter(id: str = "m1", queue: str = "emails", payload: bytes = b'{"to":"a@b"}', **fields: object) -> DeadLetter:
    now = time.time()
    message = Message(id=id, payload=payload, route_key="paid.eu", headers={"type": "Email"})
    values: dict[str, object] = {
        "reason": "failed 8 times",
        "error_type": "TimeoutError",
        "error": "no answer",
        "attempts": 8,
        "first_failed": now - 60,
        "last_failed": now,
    }
    return DeadLetter(queue=queue, message_id=id, body=message.to_bytes(), **(values | fields))  # type: ignore[arg-type]


def store(shell: Shell, *letters: DeadLetter) -> list[str]:
    async def work(engine: Engine) -> list[str]:
        assert engine.dead_letters is not None
        return [await engine.dead_letters.store(each) for each in letters]

    return shell.on_engine(work)


def standing(shell: Shell) -> list[DeadLetter]:
    async def work(engine: Engine) -> list[DeadLetter]:
        assert engine.dead_letters is not None
        return await engine.dead_letters.find()

    return shell.on_engine(work)


def test_list_shows_what_failed_and_why(shell: Shell) -> None:
    store(shell, letter("m1"), letter("m2", "receipts", reason="rejected: no such customer"))
    shown = shell.run("dead", "list")
    assert shown.code == 0
    assert all(word in shown.out for word in ("m1", "emails", "failed 8 times", "m2", "no such customer"))


def test_list_selects_by_queue_reason_and_age(shell: Shell) -> None:
    day_ago = time.time() - 86_400
    store(
        shell,
        letter("old", first_failed=day_ago, last_failed=day_ago),
        letter("new"),
        letter("other", "receipts", reason="rejected"),
    )

    def ids(*words: str) -> list[str]:
        return sorted(each["id"] for each in shell.run("dead", "list", "--json", *words).json)

    assert ids() == ["new", "old", "other"]
    assert ids("--queue", "emails") == ["new", "old"]
    assert ids("--reason", "rejected") == ["other"]
    assert ids("--older", "2h") == ["old"]


def test_list_says_so_when_it_does_not_show_all(shell: Shell) -> None:
    store(shell, *(letter(f"m{number}") for number in range(3)))
    shown = shell.run("dead", "list", "--limit", "2", "--json")
    assert len(shown.json) == 2
    assert "more than these 2" in shown.err


def test_show_prints_the_payload_escaped_and_without_markup(shell: Shell) -> None:
    store(shell, letter("m1", payload=b"[red]hi[/red]\x1b[2J\x07", reason="\x1b]0;title\x07"))
    shown = shell.run("dead", "show", "m1")
    assert shown.code == 0
    assert "[red]hi[/red]\\x1b[2J\\x07" in shown.out
    assert "\x1b" not in shown.out
    assert "\x07" not in shown.out
    assert "\x1b" not in shell.run("dead", "list").out


def test_show_json_has_the_whole_letter(shell: Shell) -> None:
    (key,) = store(shell, letter("m1"))
    fields = shell.run("dead", "show", "m1", "--json").json
    expected = {
        "queue": "emails",
        "id": "m1",
        "key": key,
        "reason": "failed 8 times",
        "attempts": 8,
        "marked": False,
        "payload": '{"to":"a@b"}',
        "route_key": "paid.eu",
        "headers": {"type": "Email"},
    }
    assert {name: fields[name] for name in expected} == expected


def test_show_json_carries_bytes_that_are_no_text_as_base64(shell: Shell) -> None:
    store(shell, letter("m1", payload=b"\xff\x00"))
    assert shell.run("dead", "show", "m1", "--json").json["payload_base64"] == "/wA="


def test_bytes_that_are_no_message_are_shown_as_they_are(shell: Shell) -> None:
    (key,) = store(
        shell, DeadLetter(queue="emails", body=b"\x1bnonsense", reason="undecodable", last_failed=time.time())
    )
    shown = shell.run("dead", "show", key)
    assert shown.code == 0
    assert "\\x1bnonsense" in shown.out


def test_a_wrong_id_is_answered_with_close_ones(shell: Shell) -> None:
    store(shell, letter("order-17"))
    wrong = shell.run("dead", "show", "order-71")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err == "easybus: no dead letter has the id order-71; did you mean order-17?\n"


def test_a_wrong_queue_is_answered_with_close_ones(shell: Shell) -> None:
    store(shell, letter())
    for words in (["list"], ["retry"], ["delete", "--yes"]):
        wrong = shell.run("dead", *words, "--queue", "emial")
        assert wrong.code == 1
        assert "did you mean emails?" in wrong.err


def test_an_id_in_two_queues_asks_for_the_queue(shell: Shell) -> None:
    store(shell, letter("m1"), letter("m1", "receipts"))
    wrong = shell.run("dead", "delete", "m1")
    assert wrong.code == 1
    assert "add --queue emails or --queue receipts" in wrong.err
    assert shell.run("dead", "delete", "m1", "--queue", "emails").code == 0
    assert [each.queue for each in standing(shell)] == ["receipts"]


def test_an_id_with_two_payloads_asks_for_the_key(shell: Shell) -> None:
    keys = store(shell, letter("m1", payload=b"1"), letter("m1", payload=b"2"))
    wrong = shell.run("dead", "show", "m1")
    assert wrong.code == 1
    assert all(key in wrong.err for key in keys)
    assert shell.run("dead", "show", keys[1], "--json").json["payload"] == "2"


def test_retry_marks_those_named_and_no_other(shell: Shell) -> None:
    store(shell, letter("m1"), letter("m2"), letter("m3"))
    assert shell.run("dead", "retry", "m1", "m3", "--json").json == {"marked": 2}
    assert sorted(each.message_id for each in standing(shell) if each.marked) == ["m1", "m3"]


def test_retry_all_asks_first(shell: Shell) -> None:
    store(shell, letter("m1"), letter("m2", "receipts"))
    assert shell.run("dead", "retry", "--all", input="n\n").code == 1
    assert shell.run("dead", "retry", "--all", input="").code == 1
    assert [each for each in standing(shell) if each.marked] == []
    assert shell.run("dead", "retry", "--all", input="y\n").code == 0
    assert all(each.marked for each in standing(shell))


def test_retry_and_delete_without_a_selection_are_wrong_usage(shell: Shell) -> None:
    store(shell, letter())
    for word in ("retry", "delete"):
        wrong = shell.run("dead", word, "--yes")
        assert wrong.code == 2
        assert "--all" in wrong.err
        assert shell.run("dead", word, "m1", "--all").code == 2
    assert [(each.message_id, each.marked) for each in standing(shell)] == [("m1", False)]


def test_delete_by_selection_asks_first(shell: Shell) -> None:
    store(shell, letter("m1"), letter("m2", reason="rejected"))
    assert shell.run("dead", "delete", "--reason", "rejected", input="n\n").code == 1
    assert len(standing(shell)) == 2
    assert shell.run("dead", "delete", "--reason", "rejected", "--yes", "--json").json == {"deleted": 1}
    assert [each.message_id for each in standing(shell)] == ["m1"]


def test_a_mended_letter_gets_a_new_id_and_names_the_old_one(shell: Shell) -> None:
    store(shell, letter("m1"))
    answer = shell.run("dead", "edit", "m1", "--payload", '{"to": "c@d"}', "--json").json
    (mended,) = standing(shell)
    message = Message.from_bytes(mended.body)
    assert message.id == answer["id"] != "m1"
    assert message.payload == b'{"to":"c@d"}'
    assert message.headers == {"type": "Email", "mended-from": "m1"}
    assert message.route_key == "paid.eu"
    assert mended.reason == "failed 8 times"
    assert not mended.marked


def test_edit_can_mark_for_retry_at_once(shell: Shell) -> None:
    store(shell, letter("m1"))
    assert shell.run("dead", "edit", "m1", "--payload", "{}", "--retry").code == 0
    assert [each.marked for each in standing(shell)] == [True]


def test_edit_opens_the_editor(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    store(shell, letter("m1"))
    editor = shell.folder / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/a@b/z@z/ "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(editor))
    assert shell.run("dead", "edit", "m1").code == 0
    assert Message.from_bytes(standing(shell)[0].body).payload == b'{"to":"z@z"}'


@pytest.mark.parametrize(
    ("editor", "says"), [("true", "as it was"), ("false", "ended with 1"), ("no-editor", "--file")]
)
def test_an_editor_that_changes_nothing_changes_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, editor: str, says: str
) -> None:
    store(shell, letter("m1"))
    monkeypatch.setenv("EDITOR", editor)
    done = shell.run("dead", "edit", "m1")
    assert done.code == 1
    assert says in done.err
    assert standing(shell)[0].message_id == "m1"


def test_edit_refuses_what_is_no_json_where_json_was(shell: Shell) -> None:
    store(shell, letter("m1"))
    (shell.folder / "new").write_text("{broken")
    done = shell.run("dead", "edit", "m1", "--file", str(shell.folder / "new"))
    assert done.code == 1
    assert "no JSON" in done.err
    assert standing(shell)[0].message_id == "m1"
    assert shell.run("dead", "edit", "m1", "--file", str(shell.folder / "new"), "--raw").code == 0
    assert Message.from_bytes(standing(shell)[0].body).payload == b"{broken"
