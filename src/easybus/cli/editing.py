"""A dead letter's new payload: out of an editor, a file or the command line."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import msgspec

from ..message import MENDED_FROM, Message, new_id
from .output import Failure


def mended(old: Message | None, payload: bytes) -> Message:
    """The message with another payload: a new id, since the old one stands for the old payload; it names that."""
    if old is None:
        return Message(id=new_id(), payload=payload)
    headers = {**old.headers, MENDED_FROM: old.id} if old.id else dict(old.headers)
    return Message(id=new_id(), payload=payload, route_key=old.route_key, headers=headers)


def new_payload(old: bytes, *, payload: str | None, file: str | None, raw: bool) -> bytes:
    """The payload to be.

    Raises:
        Failure: no editor or file, or it is no JSON where the old one was, and not `raw`.
    """
    if payload is not None:
        new = payload.encode()
    elif file is not None:
        new = _read(file)
    else:
        new = _edited(old)
    if raw or not _is_json(old):
        return new
    try:
        return msgspec.json.format(new.strip(), indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(f"the new payload is no JSON ({error}), the old one was; --raw takes it as it is") from None


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}") from None


def _edited(old: bytes) -> bytes:
    is_json = _is_json(old)
    text = msgspec.json.format(old, indent=2) + b"\n" if is_json else old
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    descriptor, path = tempfile.mkstemp(prefix="easybus-", suffix=".json" if is_json else ".txt")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(text)
        try:
            ended = subprocess.run([*shlex.split(editor), path], check=False)  # noqa: S603 - the user's own editor
        except OSError as error:
            raise Failure(
                f"the editor {editor!r} cannot be started ({error.strerror}); set EDITOR, or give --file"
            ) from None
        if ended.returncode != 0:
            raise Failure(f"the editor {editor!r} ended with {ended.returncode}; nothing was changed")
        new = Path(path).read_bytes()
        return old if new == text else new
    finally:
        Path(path).unlink(missing_ok=True)
