"""Everything that README and docs show is run: their Python, their commands, their tables, the tests that they name.

A page's blocks run in order, in a folder of the page's own:

    ```python                  one program of all such blocks; `await` may stand outside functions
    ```python title="shop.py"  a file; several of one name are joined; it is imported once
    ```console                 `$ command` is run; lines under it are its output (`...` stands for anything)
    ```text                    what the program prints up to there

Before a block may stand: <!-- test: eventually --> the command is repeated until its output is as shown;
<!-- test: background --> it runs on, its output is waited for at the end, then SIGTERM and exit 0;
<!-- test: new program --> a new program begins; <!-- test: fails --> the command exits with 1;
<!-- test: skip, why -->: not run. What readers need not see stands in a comment that begins with `hidden` and a block's first line:
<!-- hidden python title="shop.py" … -->.

`python tests/test_docs.py` writes the tables that are made out of the code.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from easybus import Bus, errors, message
from easybus.bound import SendOptions
from easybus.clock import SystemClock
from easybus.engines import registry
from easybus.receiving.subscription import HandlerOptions
from easybus.sending.checkback import CheckPolicy
from easybus.topic import QueueOptions, TopicOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATIENCE = 20.0
"""Seconds that a command may take, or an output that is waited for."""

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<test>[^>]*?) -->\n)?"
    r"(?:^(?P<indent>[ ]*)```(?P<info>[a-z]+[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$"
    r"|^<!-- hidden (?P<hidden_info>[^\n]*)\n(?P<hidden>.*?)^-->$)",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')
_PROGRAM = """
import ast, asyncio, inspect, sys
_path = sys.argv[1]
with open(_path) as _file:
    _code = compile(_file.read(), _path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
sys.path.insert(0, ".")
_made = eval(_code, globals())
if inspect.iscoroutine(_made):
    asyncio.run(_made)
"""


@dataclass
class Block:
    language: str
    body: str
    line: int
    title: str = ""
    test: str = ""


@dataclass
class Started:
    """A command that runs on."""

    process: subprocess.Popen[bytes]
    output: Path
    expected: str


@dataclass
class Folder:
    """Where one page's blocks run."""

    path: Path
    page: str
    program: list[str] = field(default_factory=list[str])
    expected: str = ""
    env: dict[str, str] = field(default_factory=lambda: environment())
    started: list[Started] = field(default_factory=list[Started])

    def where(self, line: int) -> str:
        return f"{self.page}:{line}"

    def run(self, blocks: list[Block]) -> None:
        for block in blocks:
            if block.test.startswith("skip"):
                continue
            if block.language == "python" and block.title:
                self._write(block)
            elif block.language == "python":
                if block.test == "new program":
                    self._run_program(block.line)
                self.program.append("\n" * (block.line - "".join(self.program).count("\n")) + block.body)
            elif block.language == "console":
                self._run_program(block.line)
                self._console(block)
            elif block.language == "text" and self.program:
                self.expected += block.body
        self._run_program(0)
        self._end()

    def _write(self, block: Block) -> None:
        path = self.path / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(block.body + "\n")
        if block.title.endswith(".py"):
            # Not imported, which would run it: only shown to be Python here, the commands below it run it.
            compile(path.read_text(), self.where(block.line), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def _run_program(self, line: int) -> None:
        if not self.program:
            return
        program, self.program = "".join(self.program), []
        expected, self.expected = self.expected, ""
        path = self.path / "the_page.py"
        path.write_text(program)
        done = self._call([sys.executable, "-W", "error", "-c", _PROGRAM, "the_page.py"])
        assert done.returncode == 0, f"{self.where(line)}: the program above fails\n{done.stdout}{done.stderr}"
        assert not expected or matches(done.stdout, expected), different(self.where(line), expected, done.stdout)

    def _console(self, block: Block) -> None:
        for command, expected in commands(block.body):
            if command.startswith("export "):
                self.env |= dict(word.split("=", 1) for word in command.split()[1:])
                continue
            if block.test == "background":
                output = self.path / f"output-{len(self.started)}"
                with output.open("wb") as file:
                    process = subprocess.Popen(
                        ["bash", "-c", f"exec {command}"],
                        cwd=self.path,
                        env=self.env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                self.started.append(Started(process, output, expected))
                continue
            deadline = time.monotonic() + PATIENCE
            while True:
                done = self._call(["bash", "-c", command])
                printed = done.stdout + done.stderr
                good = done.returncode == (1 if block.test == "fails" else 0) and (
                    not expected.strip() or matches(printed, expected)
                )
                if good or block.test != "eventually" or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            shown = different(f"{self.where(block.line)}: $ {command}", expected, f"{printed}(exit {done.returncode})")
            assert good, shown + self._others()

    def _call(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.path, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def _end(self) -> None:
        for one in self.started:
            deadline = time.monotonic() + PATIENCE
            while not matches(one.output.read_text(), one.expected + "...") and one.process.poll() is None:
                shown = different(self.page, one.expected, one.output.read_text())
                assert time.monotonic() < deadline, shown
                time.sleep(0.05)
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
            code = one.process.wait(PATIENCE)
            printed = one.output.read_text()
            assert code == 0, f"{self.page}: exit {code}\n{printed}"
            assert matches(printed, one.expected + "..."), different(self.page, one.expected, printed)

    def _others(self) -> str:
        return "".join(f"\n--- in the background:\n{one.output.read_text()}" for one in self.started)

    def close(self) -> None:
        for one in self.started:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        info = match["hidden_info"] or match["info"]
        inner = match["hidden"] if match["hidden"] is not None else match["body"]
        indent = match["indent"] or ""
        inner = "".join(line.removeprefix(indent) for line in inner.splitlines(keepends=True))
        title = _TITLE.search(info)
        line = text.count("\n", 0, match.start("hidden" if match["hidden"] is not None else "body"))
        found.append(Block(info.split()[0], inner, line, title[1] if title else "", match["test"] or ""))
    return found


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output shown under it."""
    command, output = "", ""
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:].rstrip("\n"), ""
        elif command.endswith("\\"):
            command = command[:-1] + line.rstrip("\n")
        else:
            output += line
    yield command, output


def matches(printed: str, expected: str) -> bool:
    """Whether the lines expected come in what was printed, in their order and one after the other."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    pattern = ".*".join(re.escape(part) for part in tidy(expected).split("..."))
    return re.fullmatch(pattern, tidy(printed), re.DOTALL) is not None


def different(where: str, expected: str, printed: str) -> str:
    return f"{where}\n--- shown:\n{expected}\n--- printed:\n{printed}"


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASYBUS", "PYTEST", "COV"))}
    folder = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{folder}:{kept.get('PATH', '')}",
        "COLUMNS": "120",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=name_of)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path, name_of(page))
    try:
        folder.run(blocks_of(page))
    finally:
        folder.close()


# ------------------------------------------------------------------------------------- what pages say of the code

_TEST_NAME = re.compile(r"(?<![\w/])test_\w+(?!\w*\.py)\b")
_LINKED_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
_CODE = re.compile(r"^[ ]*```.*?^[ ]*```$", re.MULTILINE | re.DOTALL)

CAPABILITIES = {
    "durable": "a confirmed message outlives a killed process",
    "shared": "other processes see it",
    "fenced": "a late ack never settles another's delivery",
    "atomic_move": "a retry is one atomic step",
    "ordered": "one consumer sees the order of sending",
    "counts": "counts of a queue's messages are exact",
    "counts_routes": "`require=True` is possible",
    "lists_queues": "lists its queues and topics",
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
EXAMPLES = {"memory": "memory://", "sqlite": "sqlite:///shop.db"}


def engines_table() -> str:
    engines = [registry.create(EXAMPLES[scheme], SystemClock()) for scheme in registry.ENGINES]
    lines = [f"| | {' | '.join(f'`{scheme}://`' for scheme in registry.ENGINES)} |"]
    lines.append("| --- |" + " --- |" * len(engines))
    capabilities = [asdict(engine.driver.caps) for engine in engines if engine.driver is not None]
    for name, says in CAPABILITIES.items():
        lines.append(f"| {says} | {' | '.join(_shown(name, one[name]) for one in capabilities)} |")
    for name, says in STORAGES.items():
        lines.append(f"| {says} | {' | '.join('yes' if getattr(one, name) is not None else 'no' for one in engines)} |")
    return "\n".join(lines)


def _shown(name: str, value: object) -> str:
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


def test_pages_are_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(with_tables(each.read_text()))
