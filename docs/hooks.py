"""What the site takes from elsewhere: the command line's own help, and the list of recipes.

`<!-- commands -->` in a page becomes the help of every command, so that the two never differ. The pages of `how-to/`
stand in the navigation in the order of their titles: a recipe is added by writing it.
"""

from __future__ import annotations

import html
import inspect
from pathlib import Path
from typing import Any

import typer

from easybus.cli.app import app

MARK = "<!-- commands -->"


def on_config(config: Any) -> Any:
    folder = Path(config.docs_dir)
    pages = [page for page in (folder / "how-to").glob("*.md") if page.name != "index.md"]
    recipes = [page.relative_to(folder).as_posix() for page in sorted(pages, key=_title)]
    for entry in config.nav:
        if "How to" in entry:
            entry["How to"] = ["how-to/index.md", *recipes]
    return config


def _title(page: Path) -> str:
    return next((line for line in page.read_text().splitlines() if line.startswith("# ")), page.name)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARK, "\n".join(_commands())) if MARK in markdown else markdown


def _commands() -> list[str]:
    root = typer.main.get_command(app)
    lines: list[str] = []
    _add(root, "easybus", lines)
    return lines


def _add(command: Any, name: str, lines: list[str]) -> None:
    children = getattr(command, "commands", {})
    if not children:
        context = typer.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"### {name}", "", inspect.cleandoc(command.help or ""), "", "```console", f"$ {name} {usage}"]
        lines += ["```", ""]
        records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| `{names}` | {html.escape(text).replace('|', chr(92) + '|')} |" for names, text in records]
    for child, inner in children.items():
        _add(inner, f"{name} {child}", lines)
