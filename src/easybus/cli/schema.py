"""`easybus schema`: the statements that make an engine's tables, for those who let no program make any."""

from __future__ import annotations

from typing import Annotated

import typer

from ..clock import SystemClock
from ..engines.contract import SchemaEngine
from ..engines.registry import ENGINES, create
from ..shown import hide
from .output import Failure, Misused, close_to, guarded, show_json
from .target import AppArgument, FactoryOption, JsonOption, StorageOption, Target, UrlOption

_DEFAULTS = {"memory": "memory://", "sqlite": "sqlite:///easybus.db"}


@guarded
def schema(
    app: AppArgument = None,
    factory: FactoryOption = False,
    url: UrlOption = None,
    storage: StorageOption = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            "--dialect",
            metavar="NAME",
            help="Only for engines of this kind, such as postgresql; without APP and --url: with the default names.",
        ),
    ] = None,
    since: Annotated[
        int, typer.Option("--from", min=0, metavar="VERSION", help="The tables there are: what brings them up to date.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the statements that opening the bus would run to make its tables, with the schema and prefix of its URL.

    Nothing is connected. Each statement ends with `;` at the end of a line, and nothing else does.
    """
    scripts = [
        {"url": shown, "sql": engine.schema(since)} for shown, engine in _engines(app, factory, url, storage, dialect)
    ]
    if as_json:
        show_json(scripts)
        return
    for script in scripts:
        print(f"-- easybus at {script['url']}\n{script['sql']}", end="")


def _engines(
    app: str | None, factory: bool, url: str | None, storage: str | None, dialect: str | None
) -> list[tuple[str, SchemaEngine]]:
    """The engines asked for that keep tables, each once, with their URLs as they may be shown.

    Raises:
        Failure: none of them does.
    """
    if dialect is not None and dialect not in ENGINES:
        raise Misused(f"no dialect {dialect!r}; {close_to(dialect, ENGINES, 'engines')}")
    if dialect is not None and app is None and url is None:
        urls = [_DEFAULTS.get(dialect, f"{dialect}://localhost/easybus")]
    else:
        first, second, more = Target(None if url else app, factory, url, storage).urls()
        urls = list(dict.fromkeys([first, second, *more]))
    for each in urls:
        hide(each)
    engines = [create(each, SystemClock()) for each in urls if dialect in (None, each.partition(":")[0])]
    found: list[tuple[str, SchemaEngine]] = [
        (engine.url, engine) for engine in engines if isinstance(engine, SchemaEngine)
    ]
    if not found:
        names = ", ".join(engine.url for engine in engines) or f"what the app is given ({dialect} is not among it)"
        raise Failure(f"no tables are kept by {names}: there is nothing to make")
    return found
