"""`easybus check`: what is promised, and what contradicts it, before it is deployed."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ..checking import Finding, Report
from ..promises import Guarantee, long
from .loading import load_bus
from .output import FAILED, counted, guarded, hidden, hide, say, show_json, show_table
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
        show_table(("handled in", "remembered", "rows", "if it fails"), _kept(handles), "", folds="if it fails")
    _list(report.notes, "note")
    _list(report.contradictions, "contradiction")
    if report.ok:
        say("")
        say("no contradictions")


def _kept(handles: list[Guarantee]) -> list[tuple[object, ...]]:
    return [
        (
            one.name,
            None if one.remembered is None else long(one.remembered),
            None if one.rows is None else f"{one.rows:,}",
            hidden(one.failure),
        )
        for one in handles
    ]


def _list(findings: list[Finding], kind: str) -> None:
    if findings:
        say("")
        say(f"{counted(len(findings), kind)}:")
    for each in findings:
        say(hidden(f"- {each.where}: {each.text}"))
