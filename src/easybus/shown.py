"""What may be shown to a person of what came from anywhere: no control sequence, no password, no error of its own.

Payloads, names and errors pass `visible` before they reach a terminal or a page, and `hidden` where they may quote a
URL. Errors that users' code raised pass `described` before they are stored or logged.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

import msgspec

__all__ = ["astray", "described", "hidden", "hide", "said", "storable", "visible", "visible_bytes"]


def visible(text: str) -> str:
    """The text with every character that steers a terminal, or cannot be seen, as its escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    # Cc, Cf: controls and formats (bidi overrides too); Cs, Cn, Co: not printable; Zl, Zp: line ends of Unicode.
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def _escaped(char: str) -> str:
    code = ord(char)
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")


def visible_bytes(data: bytes) -> str:
    """Payload bytes in lines for a person: JSON laid out, text as it is, other bytes escaped."""
    try:
        text = msgspec.json.format(data, indent=2).decode() if data else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = data.decode("utf-8", "backslashreplace")
    return "\n".join(visible(line) for line in text.split("\n"))


def described(error: BaseException) -> str:
    """An error's class and what it says, as `storable` text, whatever its `__str__` does."""
    name, text = type(error).__name__, said(error)
    return f"{name}: {text}" if text else name


def said(error: BaseException) -> str:
    """What an error says, as `storable` text, whatever its `__str__` does."""
    try:
        return storable(str(error))
    except Exception:
        return "<what it says cannot be shown>"


def storable(text: str) -> str:
    """As text that every storage takes: halves of surrogate pairs, as in names of files that are no UTF-8, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


_FILES = ("memory", "sqlite")
"""Schemes whose URLs hold no account, and may have an '@' anywhere."""
_PLACE = re.compile(r"//[^/?#]*")
_ASTRAY = re.compile(r"((?:amqps?|nats|tls|postgres(?:ql)?|mysql|rediss?)(?:\+\w+)?://)[^\s\"]*[/?#][^\s\"]*@")
_passwords: set[str] = set()


def astray(url: str) -> bool:
    """Whether an '@' stands where a URL has no user and password any more.

    Those hold a '/', '?' or '#' then, as it stands, and whoever reads the URL takes a part of them for something else.
    """
    scheme, _, rest = url.partition(":")
    place = _PLACE.match(rest)
    return scheme.strip().lower() not in _FILES and "@" in rest[place.end() if place else 0 :]


def hide(url: str) -> None:
    """Never print the password of this URL, wherever an error may quote it."""
    scheme, _, rest = url.partition(":")
    if scheme.strip().lower() in _FILES:  # an account is none of theirs, but may be written all the same
        place = _PLACE.match(rest)
        rest = place[0] if place else ""
    account = rest.removeprefix("//").rpartition("@")[0]
    password = account.partition(":")[2] or (account if astray(url) else "")
    if password:
        _passwords.update((password, unquote(password)))


def hidden(text: str) -> str:
    """The text without the passwords of URLs: those in it, and those that were given."""
    for password in sorted(_passwords, key=len, reverse=True):
        text = text.replace(password, "***")
    text = _ASTRAY.sub(r"\1***@", text)
    text = re.sub(r"(://[^\s/?#:@]*):[^\s/?#]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:\w*password|passwd|pwd|token|secret)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)
