"""Django: the app `easybus.django`.

    INSTALLED_APPS = [..., "easybus.django"]
    EASYBUS = "shop.bus:bus"                   # or a function that returns the bus: "shop.bus:create_bus"

    project.py      the bus that the setting names      databases.py    Django's database as a bus's URL
    apps.py         at Django's start: `handlers` modules, connections around handlers
    management/     manage.py easybus ...               migrations/     manage.py migrate makes the bus's tables
    admin.py        dead letters                        testing.py      the bus in TransactionTestCase

What rides in Django's transactions (`within=`) is in `easybus.transactions`, and works without the app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra

try:
    import django
except ModuleNotFoundError as error:
    if error.name != "django":
        raise
    raise MissingExtra("easybus.django needs the package django: pip install 'easybus[django]'") from None

from .databases import database_url
from .project import get_bus

if TYPE_CHECKING:
    from ..bus import Bus

    bus: Bus

__all__ = ["database_url", "get_bus"]


def __getattr__(name: str) -> Any:
    """`easybus.django:bus`: the project's bus, for the command line."""
    if name != "bus":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from django.apps import apps

    if not apps.ready:
        django.setup()
    return get_bus()
