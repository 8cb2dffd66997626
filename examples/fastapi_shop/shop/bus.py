"""The bus, for the web process and for workers alike.

easybus run --factory shop.bus:create_bus
"""

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from easybus import Bus

from . import stock
from .settings import Settings


def create_bus(settings: Settings | None = None, engine: AsyncEngine | None = None) -> Bus:
    """The shop's bus, with all its handlers. Nothing is connected yet."""
    settings = settings or Settings.from_environment()
    engine = engine or create_async_engine(settings.sqlalchemy_url)
    bus = Bus(settings.database, service="shop")
    bus.include(stock.router)
    bus.provide(AsyncSession, async_sessionmaker(engine), per="message")
    return bus
