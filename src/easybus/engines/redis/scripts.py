"""The scripts: each file of `lua/` is one step that nothing comes between."""

from __future__ import annotations

import hashlib
from importlib.resources import files

__all__ = ["Script"]


class Script:
    """One script. The server knows it by its digest, once it has been sent."""

    def __init__(self, name: str, *, lasting: bool = False) -> None:
        """`lasting`: what it has written must not be lost with the master, where replicas are waited for."""
        self.name = name
        self.lasting = lasting
        self.text = files(__name__.rpartition(".")[0]).joinpath("lua", f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name!r})"
