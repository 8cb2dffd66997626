"""`manage.py easybus ...`: the whole command line, with the project's bus as its app."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

_APP = "easybus.django:bus"


class Command(BaseCommand):
    """Words and options are those of the command `easybus`, without APP."""

    help = "Run and look after the project's message bus: run, queues, dead, tx, relay, check, schema, doctor ..."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("words", nargs=argparse.REMAINDER, help="what `easybus` takes; --help shows it")

    def run_from_argv(self, argv: list[str]) -> None:
        """Everything after `easybus` is the command line's own, but what Django has taken already."""
        parser = CommandParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        taken, words = parser.parse_known_args(argv[2:])
        again = ["--pythonpath", taken.pythonpath] if taken.pythonpath else []
        self._run(words, f"{os.path.basename(argv[0])} {argv[1]}", [*_this_program(), argv[1], *again])

    def handle(self, *args: Any, **options: Any) -> None:
        """`call_command("easybus", "queues")`. Raises `CommandError` where the command fails."""
        try:
            self._run([str(word) for word in (*args, *options["words"])], "easybus", [*_this_program(), "easybus"])
        except SystemExit as end:
            if end.code:
                raise CommandError(f"easybus ended with {end.code}") from None

    def _run(self, words: list[str], name: str, program: list[str]) -> None:
        from ....cli import load

        before = os.environ.get("EASYBUS_APP")
        os.environ["EASYBUS_APP"] = _APP  # for the processes that it starts, too
        try:
            load()(args=words, prog_name=name, obj=program)
        finally:
            if before is None:
                del os.environ["EASYBUS_APP"]
            else:
                os.environ["EASYBUS_APP"] = before


def _this_program() -> list[str]:
    """What starts this program again: `python manage.py`, or `python -m django`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name.removesuffix(".__main__")]
    return [sys.executable, sys.argv[0]]
