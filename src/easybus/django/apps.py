"""What happens when Django starts."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["EasybusConfig"]


class EasybusConfig(AppConfig):
    """The app `easybus.django`."""

    name = "easybus.django"
    label = "easybus"
    verbose_name = "Message bus"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Find the bus and its handlers, and look after Django's connections around them.

        Raises:
            ImproperlyConfigured: the setting `EASYBUS` is missing or wrong.
        """
        from django.core.signals import request_started
        from django.db.backends.signals import connection_created

        from .around import DjangoThreads, open_for_request, orm_apart
        from .discovery import discover
        from .project import get_bus
        from .tables import leave_checkpoints, remember_names

        remember_names()
        request_started.connect(open_for_request)
        connection_created.connect(leave_checkpoints)
        bus = get_bus()
        discover(bus)
        bus.threads = DjangoThreads
        if orm_apart not in bus.middleware:
            bus.middleware = (orm_apart, *bus.middleware)
