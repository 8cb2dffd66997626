"""The project's bus: what the setting `EASYBUS` names."""

from __future__ import annotations

import importlib
import threading

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ..bus import Bus

__all__ = ["get_bus"]

_WRITE = (
    "write in the settings EASYBUS = 'shop.bus:bus', where the module shop/bus.py has `bus = Bus(...)`; or name a "
    "function that returns the bus: EASYBUS = 'shop.bus:create_bus'"
)

_made: dict[str, Bus] = {}
_making = threading.RLock()


def get_bus() -> Bus:
    """The bus that the setting `EASYBUS` names as `module:name`: a `Bus`, or a function that returns one, which is
    called once in a process.

    Raises:
        ImproperlyConfigured: the setting is missing, or names no bus; the text says what to write.
    """
    named = getattr(settings, "EASYBUS", None)
    if not named:
        raise ImproperlyConfigured(f"the setting EASYBUS is missing: {_WRITE}")
    if not isinstance(named, str):
        raise ImproperlyConfigured(f"EASYBUS is a {type(named).__name__}, and names no bus: {_WRITE}")
    with _making:
        if named not in _made:
            _made[named] = _make(named)
        return _made[named]


def _make(named: str) -> Bus:
    module_name, colon, name = named.partition(":")
    if not colon or not module_name or not name:
        parent, _, last = named.strip(":").rpartition(".")
        meant = f"EASYBUS = '{parent}:{last}'" if parent else "EASYBUS = 'shop.bus:bus'"
        raise ImproperlyConfigured(f"EASYBUS = {named!r} is not of the form module:name; write {meant}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise
        raise ImproperlyConfigured(f"EASYBUS = {named!r}, and there is no module {missing!r}: {_WRITE}") from error
    found: object = getattr(module, name, None)
    if found is None:
        buses = [one for one, value in vars(module).items() if isinstance(value, Bus)]
        there = f"; it has {', '.join(buses)}" if buses else ""
        raise ImproperlyConfigured(f"EASYBUS = {named!r}, and {module_name} has no {name!r}{there}: {_WRITE}")
    if callable(found) and not isinstance(found, Bus):
        found = found()
    if not isinstance(found, Bus):
        raise ImproperlyConfigured(f"EASYBUS = {named!r} gives a {type(found).__name__}, no Bus: {_WRITE}")
    return found
