"""Which rows a statement is about."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from easybus.engines.mysql.picking import parts

Row = tuple[int, int, bytes]

batches = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([1, 1, 1, 2]), st.sampled_from([b"a", b"a", b"b"])),
    unique_by=lambda row: row[0],
).map(sorted)


def meets(where: str, row: Row) -> bool:
    """The condition read as a server reads it."""
    python = re.sub(r"x'([0-9a-f]*)'", r"bytes.fromhex('\1')", where)
    python = re.sub(r"id BETWEEN (\d+) AND (\d+)", r"\1 <= id <= \2", python)
    python = (
        re.sub(r"(?<![<>])= ", "== ", python).replace(" AND ", " and ").replace(" OR ", " or ").replace("IN (", "in (")
    )
    return bool(eval(python, {"id": row[0], "attempt": row[1], "owner": row[2]}))


@given(batches)
def test_each_row_is_in_one_part_in_order_and_no_other_meets_its_condition(rows: list[Row]) -> None:
    found = parts(rows, "attempt", "owner")
    assert [row for part in found for row in part.rows] == rows
    everything = [(number, attempt, owner) for number in range(62) for attempt in (1, 2) for owner in (b"a", b"b")]
    for part in found:
        if len(part.rows) > 1:  # brackets around one are none in Python
            assert [row for row in everything if meets(part.where, row)] == list(part.rows)


def test_ids_that_follow_one_another_are_said_by_their_ends_and_the_last() -> None:
    (run,) = parts([(number, b"s") for number in range(5, 105)], "secret")
    assert run.where == "(id BETWEEN 5 AND 103 OR id = 104) AND secret = x'73'"


def test_rows_without_more_to_hold_are_ids_alone() -> None:
    listed, run = parts([(1,), *((number,) for number in range(11, 31))])
    assert (listed.where, run.where) == ("id IN (1)", "(id BETWEEN 11 AND 29 OR id = 30)")


def test_long_lists_are_divided() -> None:
    assert [len(part.rows) for part in parts([(number,) for number in range(0, 2002, 2)])] == [500, 500, 1]
