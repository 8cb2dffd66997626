"""Messages and their wire, shared with the Go library."""

import base64
import json
import multiprocessing
import os
import pickle
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easybus.errors import EnvelopeError, PayloadError
from easybus.message import Message, new_id

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "golden.jsonl").read_text().splitlines()]
texts = st.text(st.characters(exclude_categories=["Cs"]))
messages = st.builds(
    Message,
    id=texts,
    payload=st.binary(max_size=300),
    retried=st.integers(0, 2**63 - 1),
    route_key=texts,
    headers=st.dictionaries(texts, texts, max_size=4),
)


@pytest.mark.parametrize("line", GOLDEN, ids=lambda line: line["id"] or "no id")
def test_what_the_go_library_writes_is_read_and_written_back_byte_for_byte(line: dict[str, Any]) -> None:
    wire = line["wire"].encode()
    message = Message.from_bytes(wire)
    assert (message.id, message.retried, message.route_key) == (line["id"], line["retried"], line["route_key"])
    if "payload" in line:
        assert json.loads(message.payload) == line["payload"]
    else:
        assert message.payload == base64.b64decode(line["payload_base64"])
    assert message.headers == {}
    assert message.to_bytes() == wire


def test_there_are_golden_lines() -> None:
    assert len(GOLDEN) >= 6


@given(messages)
def test_every_message_comes_back_as_it_was_written(message: Message) -> None:
    assert Message.from_bytes(message.to_bytes()) == message


@given(messages)
def test_a_message_is_written_as_gos_json_writer_would(message: Message) -> None:
    wire = message.to_bytes()
    fields = json.loads(wire)
    assert not any(mark in wire.decode() for mark in "<>&\u2028\u2029")
    assert {key: fields[key] for key in fields} == {
        key: value
        for key, value in (
            ("b", message.id),
            ("p", base64.b64encode(message.payload).decode()),
            ("r", message.retried),
            ("k", message.route_key),
            ("h", message.headers),
        )
        if value
    }


def test_headers_are_left_out_when_empty_and_kept_whole_otherwise() -> None:
    assert Message(id="1").to_bytes() == b'{"b":"1"}'
    assert Message(id="1", headers={"a": "é\U0001f600"}).to_bytes() == '{"b":"1","h":{"a":"é\U0001f600"}}'.encode()


def test_unknown_keys_and_nulls_are_no_error() -> None:
    wire = b'{"b":"1","x":[1,{"y":null}],"h":null,"p":null,"r":null,"k":null,"B":1}'
    assert Message.from_bytes(wire) == Message(id="1")


def test_an_empty_envelope_is_a_message_without_an_id() -> None:
    assert Message.from_bytes(b" {} ") == Message()
    assert Message().to_bytes() == b"{}"


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'"text"',
        b"{}{}",
        b'{"b":1}',
        b'{"b":"1"',
        b'{"p":"not base64!"}',
        b'{"p":"QQ"}',
        b'{"p":[1,2]}',
        b'{"r":"3"}',
        b'{"r":1.5}',
        b'{"r":-1}',
        b'{"r":9223372036854775808}',
        b'{"r":' + b"9" * 5_000 + b"}",
        b'{"r":1e400}',
        b'{"k":{}}',
        b'{"h":[]}',
        b'{"h":{"a":1}}',
        b'{"b":"\xff"}',
        b'{"b":"\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"[" * 10_000,
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"h":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    ],
    ids=lambda wire: repr(wire[:24]),
)
def test_bytes_that_are_no_message_give_an_envelope_error(wire: bytes) -> None:
    with pytest.raises(EnvelopeError, match="no message: "):
        Message.from_bytes(wire)


def test_a_new_message_carries_bytes_as_they_are_and_anything_else_as_json() -> None:
    assert Message.new(b"\x00\xff").payload == b"\x00\xff"
    assert Message.new({"a": 1}).payload == b'{"a":1}'
    headers = {"a": "b"}
    message = Message.new(1, id="x", route_key="k", headers=headers)
    headers["a"] = "changed"
    assert message == Message(id="x", payload=b"1", route_key="k", headers={"a": "b"})
    with pytest.raises(PayloadError, match="cannot be written as JSON"):
        Message.new(object())


def test_an_empty_id_can_be_asked_for() -> None:
    assert Message.new(1, id="").id == ""


def test_messages_do_not_share_their_headers() -> None:
    first, second = Message(), Message()
    first.headers["a"] = "b"
    assert second.headers == {}


def test_ids_are_uuids_of_version_seven_of_now() -> None:
    before = time.time_ns() // 1_000_000
    ids = [uuid.UUID(new_id()) for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    for one in ids:
        assert (one.version, one.variant) == (7, uuid.RFC_4122)
        assert before <= one.int >> 80 <= after
        assert len(str(one)) == 36
    random = [one.int & 0xFFF_3FFF_FFFF_FFFF_FFFF for one in ids]
    assert all(
        any(bits >> at & 1 for bits in random) for at in (*range(62), *range(64, 76))
    )  # every random bit is used


def test_ids_are_ordered_by_time() -> None:
    ids = []
    for _ in range(20):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(ids)


def test_ids_are_unique_in_a_process() -> None:
    assert len({new_id() for _ in range(100_000)}) == 100_000


def test_ids_are_unique_across_threads_that_ask_at_once() -> None:
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append([new_id() for _ in range(20_000)])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for ids in found for one in ids}) == 160_000


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of 3.12, where another test left a thread
def test_ids_are_unique_across_a_fork() -> None:
    new_id()  # the parent holds random bits that a child must not take too
    reading, writing = os.pipe()
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            try:
                os.write(writing, pickle.dumps([new_id()[15:] for _ in range(20)]).ljust(1_024, b"\0"))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = [pickle.loads(pipe.read(1_024)) for _ in children]
    ours = [new_id()[15:] for _ in range(20)]  # the random parts alone: the times differ anyway
    assert len({part for parts in (*said, ours) for part in parts}) == 80


def test_ids_are_made_in_spawned_processes_too() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert uuid.UUID(pool.apply(new_id)).version == 7
