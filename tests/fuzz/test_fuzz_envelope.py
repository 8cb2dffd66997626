"""A short run of the fuzzers; the long ones are run as scripts."""

import importlib.util
from pathlib import Path


def test_twenty_thousand_mutated_envelopes_give_a_message_or_an_envelope_error() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_envelope", Path(__file__).with_name("fuzz_envelope.py"))
    assert spec is not None
    assert spec.loader is not None
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)
    read, refused, broken = fuzzer.fuzz(20_000, seed=1)
    assert broken == []
    assert read > 1_000  # both ways are gone often enough to mean something
    assert refused > 1_000
