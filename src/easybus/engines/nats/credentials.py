"""The files that `creds=` and `nkey=` name: read anew for each connection, since they are replaced now and then.

They are looked at, and handed to the client library as text: it would read on for ever at the end of a file of
credentials that lacks a line, the event loop standing still.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import RawCredentials

from ...errors import ConfigurationError
from .address import Address

__all__ = ["credentials"]

_TOKEN = re.compile(r"BEGIN NATS USER JWT.*\n.*\S")
_SEED = re.compile(r"BEGIN USER NKEY SEED.*\n(.*\S)")
_CREDS = (
    "it holds a line with BEGIN NATS USER JWT and one with BEGIN USER NKEY SEED, the token and the seed in the lines "
    "after them; nsc generate creds writes one"
)
_NKEY = "it holds a seed, which begins with SU, and nothing else; nk -gen user writes one"


def credentials(address: Address) -> dict[str, Any]:
    """What the client library is told of the files. Raises `ConfigurationError`, which shows nothing of what they
    hold."""
    found: dict[str, Any] = {}
    if address.creds:
        text = _read(address, f"creds={address.creds}")
        seed = _SEED.search(text)
        if seed is None or _TOKEN.search(text) is None or not _is_seed(seed[1]):
            raise ConfigurationError(f"{address.url}: creds={address.creds} is no file of credentials: {_CREDS}")
        found["user_credentials"] = RawCredentials(text)
    if address.nkey:
        text = _read(address, f"nkey={address.nkey}").strip()
        if not _is_seed(text):
            raise ConfigurationError(f"{address.url}: nkey={address.nkey} is no file with an nkey's seed: {_NKEY}")
        found["nkeys_seed_str"] = text
    return found


def _read(address: Address, option: str) -> str:
    try:
        return Path(option.partition("=")[2]).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigurationError(f"{address.url}: {option} cannot be read: {error.strerror}") from error


def _is_seed(text: str) -> bool:
    try:
        nkeys.from_seed(bytearray(text.encode())).wipe()  # pyright: ignore[reportUnknownMemberType]
    except Exception:  # of base32, of lengths, and its own
        return False
    return True
