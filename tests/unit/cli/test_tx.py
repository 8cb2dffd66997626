"""`easybus tx`: what waits for a transaction, and an operator's word on it."""

from __future__ import annotations

from pathlib import Path

import apsw

from easybus.engines.contract import Engine, Half, Publication
from easybus.message import Message

from .conftest import Shell


def store_half(shell: Shell, id: str, topic: str = "orders", payload: bytes = b'{"total":950}') -> None:
    async def work(engine: Engine) -> None:
        assert engine.transactions is not None
        body = Message(id=id, payload=payload, route_key="paid.eu").to_bytes()
        await engine.transactions.store(Half(id=id, service="shop", topic=topic, body=body), 3600.0)

    shell.on_engine(work)


def halves(shell: Shell) -> list[str]:
    async def work(engine: Engine) -> list[str]:
        assert engine.transactions is not None
        return [half.id for half in await engine.transactions.find()]

    return shell.on_engine(work)


def waiting(shell: Shell, queue: str) -> int:
    (found,) = (each for each in shell.run("queues", "--json").json if each["queue"] == queue)
    return found["ready"] + found["delayed"]


def test_list_and_show_tell_what_waits(shell: Shell) -> None:
    store_half(shell, "h1", payload=b"\x1b[2J")
    store_half(shell, "h2")
    assert [each["id"] for each in shell.run("tx", "list", "--json").json] == ["h1", "h2"]
    assert "h1" in shell.run("tx", "list").out
    assert shell.run("tx", "list", "--service", "other", "--json").json == []
    assert shell.run("tx", "list", "--parked", "--json").json == []
    shown = shell.run("tx", "show", "h1")
    assert "\\x1b[2J" in shown.out
    assert "\x1b" not in shown.out
    fields = shell.run("tx", "show", "h2", "--json").json
    assert (fields["kind"], fields["service"], fields["topic"], fields["payload"]) == (
        "half",
        "shop",
        "orders",
        '{"total":950}',
    )


def test_publish_sends_the_half_and_removes_it(shell: Shell) -> None:
    store_half(shell, "h1")
    assert shell.run("tx", "publish", "h1", input="n\n").code == 1
    assert (halves(shell), waiting(shell, "receipts")) == (["h1"], 0)
    assert shell.run("tx", "publish", "h1", "--yes").code == 0
    assert (halves(shell), waiting(shell, "receipts")) == ([], 1)


def test_discard_asks_and_publishes_nothing(shell: Shell) -> None:
    store_half(shell, "h1")
    assert shell.run("tx", "discard", "h1", input="n\n").code == 1
    assert halves(shell) == ["h1"]
    assert shell.run("tx", "discard", "h1", "--yes", "--json").json == {"id": "h1", "outcome": "discarded"}
    assert (halves(shell), waiting(shell, "receipts")) == ([], 0)


def test_a_half_whose_topic_is_gone_is_kept(shell: Shell) -> None:
    store_half(shell, "h1", topic="ordes")
    wrong = shell.run("tx", "publish", "h1", "--yes")
    assert wrong.code == 1
    assert "did you mean orders?" in wrong.err
    assert halves(shell) == ["h1"]


def test_a_wrong_id_is_answered_with_close_ones(shell: Shell) -> None:
    store_half(shell, "order-17")
    wrong = shell.run("tx", "show", "order-71")
    assert wrong.code == 1
    assert wrong.err.endswith("easybus: no half or outbox transaction has the id order-71; did you mean order-17?\n")


def write_outbox(shell: Shell, *ids: str, park: bool = False) -> None:
    """One transaction's rows, committed; refused for good if `park`."""

    async def work(engine: Engine) -> None:
        assert engine.outbox is not None
        batch = [Publication(False, "emails", Message(id=one, payload=b"{}").to_bytes(), dedupe_id=one) for one in ids]
        connection = apsw.Connection(str(shell.file))
        with connection:
            for statement, parameters in engine.outbox.statements("shop", batch):
                connection.execute(statement, parameters)
        connection.close()
        if park:
            rows = await engine.outbox.claim("shop", 10, 30.0)
            await engine.outbox.park(rows[0].transaction, rows[0].token, "TooLarge: over the limit")

    shell.on_engine(work)


def outbox(shell: Shell) -> list[tuple[str, bool]]:
    listed = shell.run("tx", "list", "--json").json
    return [(each["message_id"], each["parked"]) for each in listed if each["kind"] == "outbox"]


def test_a_parked_outbox_transaction_is_shown_and_published_again(shell: Shell) -> None:
    write_outbox(shell, "m1", "m2", park=True)
    assert outbox(shell) == [("m1", True), ("m2", True)]
    parked = shell.run("tx", "list", "--parked")
    assert "TooLarge: over the limit" in parked.out
    assert len(shell.run("tx", "show", "m2", "--json").json) == 2
    assert shell.run("tx", "publish", "m1").code == 0
    assert outbox(shell) == [("m1", False), ("m2", False)]


def test_a_parked_outbox_transaction_is_discarded_whole(shell: Shell) -> None:
    write_outbox(shell, "m1", "m2", park=True)
    write_outbox(shell, "m3", park=False)
    assert shell.run("tx", "discard", "m2", input="n\n").code == 1
    assert shell.run("tx", "discard", "m2", "--yes").code == 0
    assert outbox(shell) == [("m3", False)]


def test_what_is_being_relayed_is_left_alone(shell: Shell) -> None:
    write_outbox(shell, "m1", park=False)
    for word in ("publish", "discard"):
        refused = shell.run("tx", word, "m1", "--yes")
        assert refused.code == 1
        assert "not parked" in refused.err
    assert outbox(shell) == [("m1", False)]


def test_the_outboxes_of_an_apps_further_databases_are_looked_at_too(shell: Shell, tmp_path: Path) -> None:
    write_outbox(shell, "m1", park=True)
    other = Shell(tmp_path, "other.db")
    write_outbox(other, "m2", park=False)
    (tmp_path / "shop.py").write_text(
        'from easybus import Bus\nbus = Bus("sqlite:///shop.db", databases=["sqlite:///other.db"])\n'
    )
    listed = shell.process("tx", "list", "--app", "shop:bus", "--json").json
    assert [(each["message_id"], each["parked"]) for each in listed] == [("m1", True), ("m2", False)]
    assert shell.process("tx", "discard", "m1", "--yes", "--app", "shop:bus").code == 0
    assert outbox(other) == [("m2", False)]
