"""What may be shown to a person of what came from anywhere: no control sequence, no password.

Payloads, names and errors pass `visible` before they reach a terminal or a page, and `hidden` where they may quote a
URL.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, urlsplit

import msgspec

__all__ = ["hidden", "hide", "visible", "visible_bytes"]


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


_passwords: set[str] = set()


def hide(url: str) -> None:
    """Never print the password of this URL, wherever an error may quote it."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        _passwords.update((password, unquote(password)))


def hidden(text: str) -> str:
    """The text without the passwords of URLs: those in it, and those that were given."""
    for password in sorted(_passwords, key=len, reverse=True):
        text = text.replace(password, "***")
    text = re.sub(r"(://[^\s/?#:@]*):[^\s/?#]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:\w*password|passwd|pwd|token|secret)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)
