"""The map of the source, held: who may import whom, and what no file may hold.

cli, testing → bus → topic, router → sending | receiving → connection → engines/contract → message, routing, errors
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import easybus

SOURCE = Path(__file__).parent.parent / "src" / "easybus"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 420
MAX_LINES_OF = {
    "engines/contract.py": 635,  # promises without logic, and what an author of an engine reads in one piece
}

# Lower floors first. A module may import its own floor and those below; `FLOORS_OF` says who lives where, by room.
FLOORS = [
    "ground",  # errors, message, routing, ...: know nothing of engines
    "contract",
    "registry",
    "connection",
    "work",  # sending, receiving, transactions
    "declaring",  # topic, router
    "bus",
    "top",  # cli, testing
]
FLOOR_OF = {
    "connection": "connection",
    "sending": "work",
    "receiving": "work",
    "transactions": "work",
    "parts": "declaring",
    "topic": "declaring",
    "router": "declaring",
    "bus": "bus",
    "outgoing": "declaring",
    "declaring": "bus",
    "bound": "bus",
    "opened": "bus",
    "running": "bus",
    "checking": "bus",
    "promises": "bus",
    "blocking": "bus",
    "cli": "top",
    "django": "top",
    "testing": "top",
}
UPWARD = {
    ("bus", "testing.harness"): "`bus.testing()` is the door to it, and imports it when it is opened",
}
NEVER_TOGETHER = [("sending", "receiving"), ("receiving", "sending")]
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def module_of(path: Path) -> tuple[str, ...]:
    """The dotted name below `easybus`, in parts: `("engines", "sqlite", "driver")`; a package is its own name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def package_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(SOURCE).parent.parts


def exists(module: tuple[str, ...]) -> bool:
    at = SOURCE.joinpath(*module)
    return not module or at.with_suffix(".py").exists() or at.is_dir()


@functools.cache
def parsed(path: Path) -> list[ast.AST]:
    """Every node of the file."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and module of every import of easybus in the file, those inside functions and `TYPE_CHECKING` too."""
    for node in parsed(path):
        if isinstance(node, ast.Import):
            for name in node.names:
                parts = tuple(name.name.split("."))
                if parts[0] == "easybus":
                    yield node.lineno, parts[1:]
        elif isinstance(node, ast.ImportFrom):
            named = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                package = package_of(path)
                base = package[: len(package) - node.level + 1] + named
            elif named[:1] == ("easybus",):
                base = named[1:]
            else:
                continue
            for name in node.names:  # `from . import x`: a module of its own, if there is one
                inner = (*base, name.name)
                yield node.lineno, inner if exists(inner) else base


def foreign_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import."""
    for node in parsed(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name.split(".")[0]) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def floor(module: tuple[str, ...]) -> str:
    match module:
        case ():
            return "bus"  # the public names: the bus and all that it stands on
        case ("engines", "contract"):
            return "contract"
        case ("engines", *_):
            return "registry"
        case (room, *_):
            return FLOOR_OF.get(room, "ground")


def room(module: tuple[str, ...]) -> str:
    return module[0] if module else ""


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(SOURCE.parent)}:{line}"


def name(module: tuple[str, ...]) -> str:
    return ".".join(("easybus", *module))


def broken_floors(path: Path) -> list[str]:
    own = FLOORS.index(floor(module_of(path)))
    return [
        f"{where(path, line)} imports {name(module)}, which is above it"
        for line, module in imports(path)
        if FLOORS.index(floor(module)) > own
        if (".".join(module_of(path)), ".".join(module)) not in UPWARD
    ]


def test_imports_point_down_only() -> None:
    assert [found for path in FILES for found in broken_floors(path)] == []


def test_sending_and_receiving_never_import_each_other() -> None:
    assert [
        f"{where(path, line)} imports {name(module)}"
        for path in FILES
        for line, module in imports(path)
        if (room(module_of(path)), room(module)) in NEVER_TOGETHER
    ] == []


def test_no_engine_imports_another() -> None:
    shared = {"certificates", "contract", "fronts", "limits", "registry", "unreached"}
    assert [
        f"{where(path, line)} imports {name(module)}"
        for path in FILES
        for line, module in imports(path)
        if room(module_of(path)) == "engines" and room(module) == "engines" and len(module) > 1
        if module[1] not in shared and module[1] != (*module_of(path), "")[1]
    ] == []


def test_nothing_but_the_registry_names_a_concrete_engine() -> None:
    engines = {at.name for at in (SOURCE / "engines").iterdir() if at.is_dir() and at.name != "__pycache__"}
    named: list[str] = []
    for path in FILES:
        own = module_of(path)
        if own == ("engines", "registry"):
            continue
        for line, module in imports(path):
            if module[:1] == ("engines",) and len(module) > 1 and module[1] in engines and own[:2] != module[:2]:
                named.append(f"{where(path, line)} imports {name(module)}")
        for node in parsed(path):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if any(text.startswith(f"easybus.engines.{engine}") for engine in engines):
                named.append(f"{where(path, node.lineno)} names {text}")
    assert named == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    allowed = MAX_LINES_OF.get(path.relative_to(SOURCE).as_posix(), MAX_LINES)
    lines = path.read_text().count("\n")
    assert lines <= allowed


def test_names_say_the_responsibility() -> None:
    assert [str(path) for path in SOURCE.rglob("*") if path.stem in FORBIDDEN_NAMES] == []


def test_pickle_is_used_nowhere() -> None:
    assert [
        where(path, line)
        for path in FILES
        for line, package in foreign_imports(path)
        if package in {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    ] == []


OPTIONAL = [
    "apsw",
    "asyncmy",
    "asyncpg",
    "django",
    "psycopg",
    "pymysql",
    "hiredis",
    "redis",
    "typer",
    "rich",
    "pydantic",
    "sqlalchemy",
    "watchfiles",
    "uvloop",
    "sqlite3",
]


def test_importing_easybus_imports_no_engine_and_no_extra() -> None:
    program = f"import sys, easybus; print(*sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    environment = {"PYTHONPATH": str(Path(easybus.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_rules_see_an_import_that_points_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    for file, text in {
        "bus.py": "",
        "message.py": "def late():\n    from .bus import Bus\n",
        "receiving/claim.py": "from ..sending import relay\n",
        "sending/relay.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert broken_floors(tmp_path / "message.py") == [
        f"{tmp_path.name}/message.py:2 imports easybus.bus, which is above it"
    ]
    assert list(imports(tmp_path / "receiving/claim.py")) == [(1, ("sending", "relay"))]
