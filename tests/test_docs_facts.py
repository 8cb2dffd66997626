"""What README and docs say of the code is so: tables, options, names of tests, errors, headers, links.

`python tests/test_docs_facts.py` writes the tables that are made out of the code.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from easybus import Bus, errors, message, parts, points
from easybus.bound import SendOptions
from easybus.clock import SystemClock
from easybus.engines import registry
from easybus.receiving.subscription import HandlerOptions
from easybus.sending.checkback import CheckPolicy
from easybus.topic import QueueOptions, TopicOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_TEST_NAME = re.compile(r"(?<![\w/])test_\w+(?!\w*\.py)\b")
_LINKED_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
_CODE = re.compile(r"^[ ]*```.*?^[ ]*```$|^<!-- hidden .*?^-->$", re.MULTILINE | re.DOTALL)

CAPABILITIES = {
    "durable": "a confirmed message outlives a killed process",
    "shared": "other processes see it",
    "fenced": "a late ack never settles another's delivery",
    "atomic_move": "a retry is one atomic step",
    "ordered": "one consumer sees the order of sending",
    "unbroken": "a transaction's messages are published in batches (else one after the other)",
    "counts": "counts of a queue's messages are exact",
    "counts_routes": "`require=True` is possible",
    "lists_queues": "lists its queues and topics",
    "looks_ahead": "its driver fetches ahead for quick handlers (else the core does)",
    "delays_topics": "a delayed topic send waits in the engine (else in a queue of the core's)",
    "max_body": "largest message",
    "max_name": "longest name, in bytes of UTF-8",
    "max_delay": "longest delay",
}
STORAGES = {
    "idempotency": "remembers what was handled",
    "dead_letters": "keeps dead letters",
    "transactions": "keeps messages of `transaction(...)`",
    "outbox": "takes messages in your database transaction (`within=`)",
}
EXAMPLES = {
    "memory": "memory://",
    "sqlite": "sqlite:///shop.db",
    "postgresql": "postgresql://localhost/shop",
    "mysql": "mysql://localhost/shop",
    "redis": "redis://localhost",
    "amqp": "amqp://localhost",
    "nats": "nats://localhost",
}
"""By scheme: of each room its first."""
DEPENDS = {
    ("redis", "durable"): "as `appendfsync` says",
    ("nats", "durable"): "as `sync_interval` says",
    ("nats", "max_body"): "1 KiB under `max_payload`",
}
"""By engine and capability: what only an open one knows."""


def engines_table() -> str:
    rooms = [room for room, _ in registry.ENGINES.values()]
    schemes = [scheme for at, scheme in enumerate(registry.ENGINES) if rooms.index(rooms[at]) == at]
    engines = [registry.create(EXAMPLES[scheme], SystemClock()) for scheme in schemes]
    lines = [f"| | {' | '.join(f'`{scheme}://`' for scheme in schemes)} |"]
    lines.append("| --- |" + " --- |" * len(engines))
    capabilities = [asdict(engine.driver.caps) for engine in engines if engine.driver is not None]
    for name, says in CAPABILITIES.items():
        lines.append(f"| {says} | {' | '.join(_shown(name, one) for one in capabilities)} |")
    for name, says in STORAGES.items():
        lines.append(f"| {says} | {' | '.join('yes' if getattr(one, name) is not None else 'no' for one in engines)} |")
    return "\n".join(lines)


def _shown(name: str, capabilities: Mapping[str, object]) -> str:
    value = DEPENDS.get((str(capabilities["engine"]), name), capabilities[name])
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    assert isinstance(value, int | float)
    units = {"max_body": f"{value / (1 << 20):g} MiB", "max_delay": f"{value / 86_400:g} days"}
    return units.get(name, f"{value:g}")


TABLES = {"engines": engines_table}


def with_tables(text: str) -> str:
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = before + begin + make() + "\n" + end + rest.partition(end)[2]
    return text


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose_of(page: Path) -> str:
    return _CODE.sub("", page.read_text())


def defined_tests() -> dict[str, set[Path]]:
    found: dict[str, set[Path]] = {}
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "src" / "easybus" / "testing").rglob("*.py")]:
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE):
            found.setdefault(name, set()).add(path)
    return found


def test_tables_are_what_the_code_says() -> None:
    assert set(CAPABILITIES) | {"engine"} == set(asdict(registry.create("memory://", SystemClock()).driver.caps))  # type: ignore[union-attr]
    for page in PAGES:
        assert page.read_text() == with_tables(page.read_text()), f"run: python {Path(__file__).relative_to(ROOT)}"


def test_every_test_that_a_page_names_exists() -> None:
    defined = defined_tests()
    for page in PAGES:
        prose = prose_of(page)
        missing = set(_TEST_NAME.findall(prose)) - set(defined)
        assert not missing, f"{name_of(page)} names tests that are not there: {missing}"
        for name, link in _LINKED_TEST.findall(prose):
            assert (page.parent / link).resolve() in defined[name], f"{name_of(page)}: {name} is not in {link}"


def test_every_link_leads_to_a_file() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in _LINK.findall(prose_of(page)):
            assert (page.parent / link).exists(), f"{name_of(page)}: there is no {link}"


def test_every_guarantee_names_a_test_that_shows_it() -> None:
    promised = prose_of(ROOT / "docs" / "guarantees.md").partition("\n## What is promised")[2].partition("\n## ")[0]
    sections = promised.split("\n### ")[1:]
    assert len(sections) >= 6
    for section in sections:
        assert _TEST_NAME.search(section), f"nothing shows: {section.splitlines()[0]}"


def test_every_point_where_a_process_may_die_is_in_the_guarantees() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    after_all = {"half.removed", "outbox.deleted", "delivery.acked", "replay.removed"}  # nothing is left to go wrong
    assert {name for name in points.POINTS if f"`{name}`" not in text} == after_all


def test_every_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    options = set(inspect.signature(Bus).parameters)
    options |= {*HandlerOptions.__dataclass_fields__, *CheckPolicy.__dataclass_fields__}
    options |= {*SendOptions.__annotations__, *QueueOptions.__annotations__, *TopicOptions.__annotations__}
    options |= set(inspect.signature(Bus.handling).parameters) - {"self"}
    missing = {name for name in options if f"`{name}`" not in text}
    assert not missing, f"docs/reference/configuration.md says nothing of {missing}"


def test_the_defaults_in_the_reference_are_the_codes() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    for options in (HandlerOptions(), CheckPolicy()):
        for name in options.__dataclass_fields__:
            default = getattr(options, name)
            if isinstance(default, int | float):
                assert re.search(rf"^\| `{name}` \| {default:g} \|", text, re.MULTILINE), f"{name}: {default:g}"


def test_every_header_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "wire.md").read_text()
    headers = [value for name, value in vars(message).items() if name.isupper() and isinstance(value, str)]
    assert len(headers) >= 6
    assert [header for header in headers if f"`{header}`" not in text] == []


def test_every_error_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert [name for name in errors.__all__ if f"`{name}`" not in text] == []


def test_the_command_line_page_has_every_command() -> None:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((ROOT / "docs" / "reference" / "cli.md").read_text())
    for command in ("run", "send", "declare", "queues", "topics", "dead list", "dead retry", "tx list", "purge"):
        assert f"### easybus {command}\n" in page
    operating = "".join(page.read_text() for page in (ROOT / "docs" / "how-to").glob("*.md"))
    named = set(re.findall(r"^### (easybus [a-z ]+)$", page, re.MULTILINE))
    assert {command for command in named if command not in operating} == set(), "how-to shows no use of these"


def test_every_name_in_the_migration_table_exists() -> None:
    table = (ROOT / "docs" / "reference" / "migration.md").read_text().partition("\n## ")[0]
    found = 0
    for row in re.findall(r"^\| `.*\| (.+) \|$", table, re.MULTILINE):
        for name, arguments in re.findall(r"`(?:await )?([A-Za-z_.]+)(?:\(([^)`]*)\))?`", row):
            owner, _, member = name.partition(".")
            thing = getattr(parts, owner, None)
            if thing is None:
                assert owner in ROWS_ALSO_NAME or any(hasattr(one, owner) for one in STORAGE_TYPES), f"no parts.{owner}"
                continue
            thing = getattr(thing, member) if member else thing
            given = {one.strip(" =") for one in arguments.split(",")} - {"", "...", "value", "Type", "url", "id"}
            assert given <= set(inspect.signature(thing).parameters), f"{name}: {given}"
            found += 1
    assert found > 20


ROWS_ALSO_NAME = {"logging.Logger", "logging", "local_tx", "delay", "never"}
STORAGE_TYPES = (parts.DeadLetterStorage, parts.TransactionStorage, parts.IdempotencyStorage)


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(with_tables(each.read_text()))
