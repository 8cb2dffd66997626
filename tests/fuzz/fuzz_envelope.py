"""Throws mutated envelopes at the decoder: `fuzz_envelope.py [NUMBER] [SEED]`; ends with 1 at any other error.

What is read must be written and read back the same; what is not must be an `EnvelopeError`.
"""

import json
import random
import sys
import traceback
from pathlib import Path

from easybus.errors import EnvelopeError
from easybus.message import Message

GOLDEN = Path(__file__).parents[1] / "data" / "golden.jsonl"
PARTS = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"null", b"true", b"-", b".", b"e",
    b"1e999", b"9" * 40, b"0", b"\x00", b"\xff", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"=", b"==", b'"b"',
    b'"p":', b'"r":', b'"k":', b'"h":{"a":"b"}', b'"h":{"a":null}', b"<", b" ", b"\n", b"[" * 2_000, b'{"h":' * 50,
]  # fmt: skip


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.choice(PARTS)
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2 if data:
                data[at % len(data)] = chance.randrange(256)
            case 3:
                data[at : at + chance.randint(0, 8)] = chance.choice(PARTS)
            case 4:
                other = chance.choice(seeds)
                cut = chance.randint(0, len(other))
                data[at:] = other[cut:]
            case _:
                piece = data[at : at + chance.randint(1, 30)]
                data[at:at] = piece * chance.randint(1, 3)
    return bytes(data)


def fuzz(number: int, seed: int) -> tuple[int, int, list[bytes]]:
    """Returns how many were messages, how many were not, and what broke it."""
    chance = random.Random(seed)
    seeds = [json.loads(line)["wire"].encode() for line in GOLDEN.read_text().splitlines()]
    seeds += [Message(id="é<", payload=b"\x00\xff", retried=7, route_key="a.b", headers={"k": "v"}).to_bytes(), b"{}"]
    read, refused, broken = 0, 0, []
    for _ in range(number):
        data = mutated(chance, seeds)
        try:
            message = Message.from_bytes(data)
            if Message.from_bytes(message.to_bytes()) != message:
                raise AssertionError("not the same when written and read again")
            read += 1
        except EnvelopeError:
            refused += 1
        except Exception:
            traceback.print_exc()
            broken.append(data)
    return read, refused, broken


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20260101
    read, refused, broken = fuzz(number, seed)
    for data in broken[:20]:
        print("broken by", data)
    print(f"{number} inputs of seed {seed}: {read} messages, {refused} refused, {len(broken)} uncaught")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
