"""The Python and the commands that README and docs show are run. What they say besides: `test_docs_facts`.

A page's blocks run in order, in a folder of the page's own:

    ```python                  one program of all such blocks; `await` may stand outside functions
    ```python title="shop.py"  a file; several of one name are joined; commands below it use it
    ```console                 `$ command` is run; lines under it are its output, `...` is anything (not: make, pip)
    ```text                    what the program prints up to there

Before a block may stand: <!-- test: eventually --> the command is repeated until its output is as shown;
<!-- test: background --> it runs on, its output is waited for at the end, then SIGTERM and exit 0;
<!-- test: new program --> a new program begins; <!-- test: fails --> the command exits with 1;
<!-- test: skip, why -->: not run. What readers need not see stands in a comment that begins with `hidden` and a
block's first line: <!-- hidden python title="shop.py" … -->.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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


def environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("EASYBUS", "DJANGO", "PYTEST", "COV"))
    }
    folder = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{folder}:{kept.get('PATH', '')}",
        "COLUMNS": "120",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


@dataclass
class Folder:
    """Where one page's blocks run."""

    path: Path
    page: str
    program: list[str] = field(default_factory=list[str])
    expected: str = ""
    env: dict[str, str] = field(default_factory=environment)
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
            if command.startswith(("make ", "pip ")):  # whole suites, and what the test has installed
                continue
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
            while not begins(one.output.read_text(), one.expected) and one.process.poll() is None:
                shown = different(self.page, one.expected, one.output.read_text())
                assert time.monotonic() < deadline, shown
                time.sleep(0.05)
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
            code = one.process.wait(PATIENCE)
            printed = one.output.read_text()
            assert code == 0, f"{self.page}: exit {code}\n{printed}"
            assert begins(printed, one.expected), different(self.page, one.expected, printed)

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


def begins(printed: str, expected: str) -> bool:
    """Whether it matches so far: nothing, or more lines, may follow."""
    return matches(printed, expected) or matches(printed, expected + "...")


def different(where: str, expected: str, printed: str) -> str:
    return f"{where}\n--- shown:\n{expected}\n--- printed:\n{printed}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=name_of)
def test_what_a_page_shows_runs(page: Path, tmp_path: Path) -> None:
    folder = Folder(tmp_path, name_of(page))
    try:
        folder.run(blocks_of(page))
    finally:
        folder.close()
