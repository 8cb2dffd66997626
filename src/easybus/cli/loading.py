"""`module:bus`, or `module:create_bus` with --factory → the bus."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import EasybusError
from ..shown import described
from .output import Failure, Misused, close_to

if TYPE_CHECKING:
    from ..bus import Bus

NO_APP = "no app: write it as module:bus, such as shop.app:bus, or set EASYBUS_APP"


def load_bus(app: str | None, *, factory: bool = False) -> Bus:
    """The bus that `app` names; the working directory is searched first.

    Raises:
        Misused: it is not of the form `module:name`.
        Failure: there is no such module or name, or it is no bus; the text says what there is instead.
    """
    from ..bus import Bus

    if not app:
        raise Misused(NO_APP)
    module_name, _, name = app.partition(":")
    if not module_name or not name:
        raise Misused(f"{app!r} names no app; write it as module:bus, such as shop.app:bus")
    module = _import(module_name)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise Failure(f"{module_name} has no {name!r}; {_instead(module, name, factory)}")
        found = getattr(found, part)
    if factory or (callable(found) and not isinstance(found, Bus)):
        if not factory:
            what = "class" if isinstance(found, type) else "function"
            raise Failure(f"{app} is no bus but a {what}; if it returns one, add --factory")
        found = _call(app, found)
    if not isinstance(found, Bus):
        raise Failure(f"{app} is a {type(found).__name__}, no Bus; {_instead(module, name, factory)}")
    return found


def _import(name: str) -> ModuleType:
    if "/" in name or "\\" in name or name.endswith(".py"):
        module = name.removesuffix(".py").strip("./\\").replace("\\", ".").replace("/", ".")
        raise Failure(f"{name!r} is a file; write its module, as Python imports it from here: {module}:bus")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise Failure(f"there is no module {missing!r} here ({here}); {_modules_near(missing)}") from None
        raise Failure(f"{name} cannot be imported: it needs {missing!r}, which is not installed") from error
    except EasybusError:
        raise
    except Exception as error:
        raise Failure(f"{name} cannot be imported: {_what(error)}") from error


def _call(app: str, function: object) -> object:
    if not callable(function):
        raise Failure(f"{app} is a {type(function).__name__}, no function; leave --factory out")
    try:
        made = function()
    except EasybusError:
        raise
    except Exception as error:
        raise Failure(f"{app}() failed: {_what(error)}") from error
    if inspect.iscoroutine(made):
        made.close()
        raise Failure(
            f"{app} is an async function; a factory is a plain one, and what it awaits belongs in the handlers"
        )
    return made


def _what(error: Exception) -> str:
    """The error, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{described(error)}{at}"


def _instead(module: ModuleType, wanted: str, factory: bool) -> str:
    from ..bus import Bus

    buses = [name for name, value in vars(module).items() if isinstance(value, Bus)]
    functions = [
        name
        for name, value in vars(module).items()
        if callable(value) and not isinstance(value, type) and getattr(value, "__module__", "") == module.__name__
    ]
    return close_to(wanted, functions if factory else buses or functions, "functions" if factory else "names")


def _modules_near(name: str) -> str:
    parent, _, last = name.rpartition(".")
    paths = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else [os.getcwd()]
    near = [f"{parent}.{found.name}" if parent else found.name for found in pkgutil.iter_modules(paths)]
    return close_to(f"{parent}.{last}" if parent else last, near, "modules")
