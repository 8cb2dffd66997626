"""Any text goes into a column and comes out as it was; no two collide."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from easybus.engines.contract import Binding, DeclareQueue, DeclareTopic, Publication
from easybus.engines.mysql.engine import MysqlEngine
from easybus.engines.mysql.names import held, place, read

TEXT = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\0\\0u\ud800\udfff")), max_size=40)


@given(TEXT)
@example("\\0\0\ud800")
def test_text_that_is_held_comes_back(text: str) -> None:
    assert read(held(text)) == text


@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3), st.integers(1, 40))
@example(["1:a", ""], ["1", ":a"], 40)
@example(["h"], ["h"], 1)
def test_what_stands_in_an_index_is_short_and_of_one_list_of_texts_only(
    one: list[str], other: list[str], times: int
) -> None:
    first, second = place(*(text * times for text in one)), place(*(text * times for text in other))
    assert (first == second) == ([text * times for text in one] == [text * times for text in other])
    assert len(first) <= 500


async def test_names_that_differ_in_case_accents_or_trailing_spaces_are_kept_apart(engine: MysqlEngine) -> None:
    names = [
        "a\0b",
        "a\\0b",
        "a\\\\0b",
        "\0",
        "\\",
        "a",
        "A",
        "a ",
        "á",
        "é",
        "e\u0301",
        "\U0001f600",
        "\U0001f601",
        "%s",
        "'",
    ]
    await engine.driver.declare([DeclareQueue(name) for name in names] + [DeclareTopic(name) for name in names])
    await engine.driver.declare([Binding(name, name, name) for name in names])
    for name in names:
        await engine.driver.publish([Publication(True, name, name.encode(), name)])
    for name in names:
        assert [one.body for one in await engine.driver.fetch(name, 9, 0.0, 30.0)] == [name.encode()]
    assert [one.name for one in await engine.driver.queues()] == sorted(names)


async def test_a_pattern_and_an_id_may_be_longer_than_an_index_entry(engine: MysqlEngine) -> None:
    from easybus.engines.contract import Claim, Claimed, DeadLetter, Half

    long = "é" * 5000
    await engine.driver.declare([DeclareQueue("q"), DeclareTopic("t"), Binding("t", "q", long)])
    assert await engine.driver.publish([Publication(True, "t", b"1", long), Publication(True, "t", b"2", "é")]) == [
        1,
        0,
    ]
    (claimed,) = await engine.idempotency.claim([Claim("q", long, b"d", 60.0)])
    assert isinstance(claimed, Claimed)
    assert await engine.idempotency.lookup("q", long) == "claimed"
    key = await engine.dead_letters.store(DeadLetter(queue="q", message_id=long, body=b"1", reason="r\0\ud800"))
    kept = await engine.dead_letters.get("q", key)
    assert kept is not None
    assert (kept.message_id, kept.reason) == (long, "r\0\ud800")
    await engine.transactions.store(Half(id=long, service="s", topic="t", body=b"1"), 0.0)
    assert [half.id for half in await engine.transactions.claim_due([("s", "t")], 1, 60.0)] == [long]
