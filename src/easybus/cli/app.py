"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import check, dead, doctor, queues, relay, run, schema, send, tx

app = typer.Typer(
    name="easybus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"easybus {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run and look after a message bus.

    An app is written module:bus (or module:function with --factory). Operators' commands take --url instead.
    EASYBUS_APP and EASYBUS_URL stand in for either.

    Exit codes: 0 done; 1 it failed, and stderr says why; 2 wrong usage; 130 interrupted.
    """
    del version


app.command()(run.run)
app.command()(relay.relay)
app.command()(send.send)
app.command()(send.declare)
app.command()(queues.queues)
app.command()(queues.topics)
app.add_typer(dead.commands)
app.add_typer(tx.commands)
app.command()(queues.purge)
app.command()(check.check)
app.command()(schema.schema)
app.command()(doctor.doctor)
