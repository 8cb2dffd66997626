"""The shop's tables.

python -m shop.models   makes them; a real service does that in its migrations
"""

import asyncio
from uuid import UUID

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .settings import Settings


class Base(DeclarativeBase):
    """All tables."""


class Item(Base):
    """Something on a shelf."""

    __tablename__ = "item"

    name: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[int]


class Order(Base):
    """What a customer asked for."""

    __tablename__ = "purchase"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]
    reserved: Mapped[bool] = mapped_column(default=False)


async def create_tables(settings: Settings) -> None:
    """Make what is missing."""
    engine = create_async_engine(settings.sqlalchemy_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables(Settings.from_environment()))
