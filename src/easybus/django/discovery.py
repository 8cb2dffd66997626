"""`handlers` modules: each installed app's is imported when Django starts, as `admin` modules are.

What stands there acts on the project's bus in one of two ways: decorators of the bus itself, or of a `Router` that the
module has under any name; such routers are included, unless the bus has their handlers already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from ..bus import Bus
from ..router import Router

__all__ = ["discover"]


def discover(bus: Bus) -> None:
    """Import the `handlers` modules, and include their routers."""
    autodiscover_modules("handlers")
    for router in _routers():
        known = {id(definition) for definition in bus.handlers}
        fresh = Router()
        fresh.targets = router.targets
        fresh.handlers = [definition for definition in router.handlers if id(definition) not in known]
        fresh.answers = {
            topic: answer for topic, answer in router.answers.items() if bus.answers.get(topic) is not answer
        }
        bus.include(fresh)


def _routers() -> Iterator[Router]:
    for app in apps.get_app_configs():
        module = sys.modules.get(f"{app.name}.handlers")
        for value in list(vars(module).values()) if module is not None else ():
            if isinstance(value, Router) and not isinstance(value, Bus):
                yield value
