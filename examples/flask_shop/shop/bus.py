"""The bus, for the web processes and for workers alike.

easybus run --factory shop.bus:create_bus
"""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from easybus import Bus

from . import invoices
from .settings import Settings


def create_bus(settings: Settings | None = None, engine: Engine | None = None) -> Bus:
    """The shop's bus, with all its handlers. Nothing is connected yet."""
    settings = settings or Settings.from_environment()
    engine = engine or create_engine(settings.sqlalchemy_url)
    bus = Bus(settings.database, service="shop")
    bus.include(invoices.router)
    bus.provide(Session, sessionmaker(engine), per="message")
    return bus
