"""Payloads: values of declared types as bytes, and back.

One type: its codec. Several types on one topic: the header `type` says which, by class name (or its entry in `names`),
never by a module path, so that code may move. Unknown fields are ignored; old versions are lifted by `upgrade`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from .errors import ConfigurationError, PayloadError
from .message import TYPE, Message
from .shown import described, said

__all__ = ["Codec", "Payloads", "codec_of"]


class Codec(Protocol):
    """Writes and reads payloads of one type."""

    def encode(self, value: Any) -> bytes: ...

    def decode(self, data: bytes) -> Any: ...


class _Bytes:
    def encode(self, value: Any) -> bytes:
        if not isinstance(value, bytes):
            raise PayloadError(f"bytes are expected, {type(value).__name__} was given")
        return value

    def decode(self, data: bytes) -> bytes:
        return data


class _Json:
    """Dataclasses, structs, typed dicts and builtins, as msgspec writes and checks them."""

    def __init__(self, type: Any) -> None:
        self._type = type
        self._class: Any = type if dataclasses.is_dataclass(type) or _is_struct(type) else None
        try:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type)
        except TypeError as error:
            raise ConfigurationError(
                f"{_shown(type)} cannot be a payload type ({error}); dataclasses, msgspec structs, TypedDict, "
                "pydantic models, builtins and bytes can"
            ) from error
        self._encode = msgspec.json.Encoder().encode

    def encode(self, value: Any) -> bytes:
        if self._class is not None and not isinstance(value, self._class):
            raise PayloadError(f"this {type(value).__name__} is no {_shown(self._type)}")
        try:
            data = self._encode(value)
            self._decoder.decode(data)  # a field of another type is found here, before anything is sent
        except Exception as error:
            raise PayloadError(f"this {type(value).__name__} is no {_shown(self._type)}: {said(error)}") from error
        return data

    def decode(self, data: bytes) -> Any:
        try:
            return self._decoder.decode(data)
        except Exception as error:
            raise PayloadError(f"the payload is no {_shown(self._type)}: {said(error)}") from error


class _Pydantic:
    """Pydantic models, found by their methods: pydantic is never imported here."""

    def __init__(self, type: Any) -> None:
        self._type = type

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, self._type):
            raise PayloadError(f"this {type(value).__name__} is no {_shown(self._type)}")
        try:
            data = str(value.model_dump_json(by_alias=True, warnings=False)).encode()
            self._type.model_validate_json(data)  # a field that was set to a wrong value is found here, not by handlers
        except Exception as error:
            raise PayloadError(f"this {type(value).__name__} is no {_shown(self._type)}: {said(error)}") from error
        return data

    def decode(self, data: bytes) -> Any:
        try:
            return self._type.model_validate_json(data)
        except Exception as error:
            raise PayloadError(f"the payload is no {_shown(self._type)}: {said(error)}") from error


@lru_cache(maxsize=1024)
def codec_of(type: Any) -> Codec:
    """The codec of a type.

    Raises:
        ConfigurationError: values of this type cannot be payloads.
    """
    if type is bytes:
        return _Bytes()
    if hasattr(type, "model_validate_json") and hasattr(type, "model_dump_json"):
        return _Pydantic(type)
    return _Json(type)


class Payloads:
    """The types of one topic or queue."""

    def __init__(
        self,
        types: tuple[Any, ...],
        *,
        names: Mapping[Any, str] | None = None,
        type_of: Callable[[Message], Any] | None = None,
        upgrade: Mapping[Any, Callable[[Any], Any]] | None = None,
    ) -> None:
        """See `Topic`. No types: any value that JSON can hold, decoded to builtins.

        Raises:
            ConfigurationError: a type that cannot be a payload, or two types under one name.
        """
        self.types = types or (Any,)
        self._type_of = type_of
        self._upgrade = dict(upgrade or {})
        given = dict(names or {})
        unknown = [_shown(kind) for kind in given if kind not in self.types and kind not in self._upgrade]
        if unknown:
            raise ConfigurationError(f"names= has {', '.join(unknown)}, which is none of the types")
        self._name_of = {kind: given.get(kind, _shown(kind)) for kind in (*self.types, *self._upgrade)}
        self._by_name: dict[str, Any] = {}
        for kind, name in self._name_of.items():
            if name in self._by_name:
                raise ConfigurationError(f"two types are called {name!r}; give one another name: names={{...: '...'}}")
            self._by_name[name] = kind
        self._codecs = {kind: codec_of(kind) for kind in self._name_of}
        self._only = self.types[0] if len(self.types) == 1 else None
        # What most messages are: of a type that their header names, and that nothing lifts.
        self._plain = {
            name: (kind, self._codecs[kind].decode)
            for name, kind in self._by_name.items()
            if kind not in self._upgrade and self._only is not Any
        }

    def encode(self, value: Any) -> tuple[bytes, str]:
        """The payload's bytes, and the entry of the header `type` (empty: none is needed).

        Raises:
            PayloadError: the value fits none of the types.
        """
        kind = self._kind(value)
        name = "" if kind is Any or kind is bytes else self._name_of[kind]
        return self._codecs[kind].encode(value), name

    def decode(self, message: Message) -> tuple[Any, Any]:
        """The type of a message and its value, lifted by `upgrade`.

        Raises:
            PayloadError: the type is unknown, or the payload does not fit it.
        """
        plain = self._plain.get(message.headers.get(TYPE, ""))
        if plain is not None:
            return plain[0], plain[1](message.payload)
        kind = self._wire_kind(message)
        value = self._codecs[kind].decode(message.payload)
        lift = self._upgrade.get(kind)
        if lift is None:
            return kind, value
        try:
            value = lift(value)
            return self._kind(value), value
        except Exception as error:
            raise PayloadError(f"upgrade of {_shown(kind)} failed: {described(error)}") from error

    def _wire_kind(self, message: Message) -> Any:
        name = message.headers.get(TYPE)
        if name is not None and self._only is not Any:
            kind = self._by_name.get(name)
            if kind is None:
                raise PayloadError(f"type {name!r} is none of {', '.join(self._by_name)}; see names= and upgrade=")
            return kind
        if self._only is not None:
            return self._only
        if self._type_of is None:
            raise PayloadError(f"no header {TYPE!r} tells which of {', '.join(self._by_name)} it is; see type_of=")
        try:
            kind = self._type_of(message)
        except Exception as error:
            raise PayloadError(f"type_of failed: {described(error)}") from error
        if kind not in self._codecs:
            raise PayloadError(f"type_of said {kind!r}, which is none of {', '.join(self._by_name)}")
        return kind

    def _kind(self, value: Any) -> Any:
        if self._only is not None:
            return self._only
        kind: Any = value.__class__
        if kind in self._codecs:
            return kind
        for declared in self.types:
            if _is_class(declared) and isinstance(value, typing.cast("type", declared)):
                return declared
        for declared in self.types:  # typed dicts and unions have no class of their own: the first that fits
            if not _is_class(declared):
                try:
                    self._codecs[declared].encode(value)
                except PayloadError:
                    continue
                return declared
        raise PayloadError(f"this {kind.__name__} is none of {', '.join(_shown(known) for known in self.types)}")


def _is_struct(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, msgspec.Struct)


def _is_class(declared: Any) -> bool:
    return isinstance(declared, type) and not typing.is_typeddict(declared)


def _shown(type: Any) -> str:
    return getattr(type, "__name__", None) or str(type)
