"""Fills `<!-- commands -->` in a page with the command line's own help, so that the two never differ."""

from __future__ import annotations

import html
import inspect
from typing import Any

import typer

from easybus.cli.app import app

MARK = "<!-- commands -->"


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
