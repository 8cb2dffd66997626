"""What the site takes from elsewhere: the command line's own help, and the pages of two folders.

`<!-- commands -->` in a page becomes the help of every command, so that the two never differ. A page of `how-to/` or
`reference/` that the navigation does not name follows those that it names, by title: a page is added by writing it.
"""

from __future__ import annotations

import html
import inspect
from pathlib import Path
from typing import Any

import typer

from easybus.cli.app import app

MARK = "<!-- commands -->"


SECTIONS = {"How to": "how-to", "Reference": "reference"}


def on_config(config: Any) -> Any:
    folder = Path(config.docs_dir)
    for entry in config.nav:
        for section in SECTIONS.keys() & entry.keys():
            listed = {
                page for named in entry[section] for page in (named.values() if isinstance(named, dict) else [named])
            }
            pages = sorted((folder / SECTIONS[section]).glob("*.md"), key=_title)
            found = [page.relative_to(folder).as_posix() for page in pages]
            entry[section] += [page for page in found if page not in listed]
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
