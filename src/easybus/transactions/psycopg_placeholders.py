"""Statements written with $1 as psycopg takes them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["pyformat"]

_PART = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|\$([0-9]+)""")
"""What is quoted (a schema's name may hold $1), or a placeholder."""


def pyformat(statement: str, params: Sequence[Any] = ()) -> tuple[str, dict[str, Any]]:
    """The statement with named placeholders, and its parameters by name."""
    return _named(statement), {f"p{at}": value for at, value in enumerate(params, 1)}


@functools.lru_cache(maxsize=100)
def _named(statement: str) -> str:
    return _PART.sub(lambda found: found[1] or f"%(p{found[2]})s", statement.replace("%", "%%"))
