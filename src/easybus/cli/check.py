"""`easybus check`: what is promised, and what contradicts it, before it is deployed."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ..checking import Finding, Report
from ..promises import Guarantee, long
from ..shown import hidden, hide
from .loading import load_bus
from .output import FAILED, counted, guarded, say, show_json, show_table
from .target import AppArgument, FactoryOption, JsonOption


@guarded
async def check(
    app: AppArgument = None,
    factory: FactoryOption = False,
    rate: Annotated[
        float | None,
        typer.Option("--rate", min=0, metavar="N", help="Messages a second in each queue: shows the rows they make."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Connect to nothing: look at the app's own settings alone.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what every sender and handler of the app is promised, and what in its settings contradicts that.

    Exit 1 if anything does. The engines are opened, as by `declare`: a SQLite file or tables that are not there are
    made. Nothing is declared, sent or handled.
    """
    bus = load_bus(app, factory=factory)
    for url in (bus.url, bus.storage_url, *bus.databases):
        hide(url or "")
    report = await bus.check(rate=rate, connect=not offline)
    if as_json:
        show_json({"ok": report.ok, **dataclasses.asdict(report)})
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(FAILED)


def _show(report: Report) -> None:
    sends = [(one.name, one.how, hidden(one.says)) for one in report.guarantees if one.how != "handle"]
    show_table(("sent to", "by", "is"), sends, "Nothing is sent.", folds="is")
    say("")
    handles = [one for one in report.guarantees if one.how == "handle"]
    says = [(one.name, hidden(one.says)) for one in handles]
    show_table(("handled in", "is"), says, "Nothing is handled.", folds="is")
    if handles:
        say("")
        _show_kept(handles)
    _list(report.notes, "note")
    _list(report.contradictions, "contradiction")
    if report.ok:
        say("")
        say("no contradictions")


def _show_kept(handles: list[Guarantee]) -> None:
    """How long each queue's messages are remembered, and what becomes of failures; rows, if a rate was given."""
    headings, rows = ["handled in", "remembered", "if it fails"], list[list[object]]()
    for one in handles:
        rows.append([one.name, None if one.remembered is None else long(one.remembered), hidden(one.failure)])
    if any(one.rows is not None for one in handles):
        headings.insert(2, "rows")
        for row, one in zip(rows, handles, strict=True):
            row.insert(2, None if one.rows is None else f"{one.rows:,}")
    show_table(headings, rows, "", folds="if it fails")


def _list(findings: list[Finding], kind: str) -> None:
    if findings:
        say("")
        say(f"{counted(len(findings), kind)}:")
    for each in findings:
        say(hidden(f"- {each.where}: {each.text}"))
