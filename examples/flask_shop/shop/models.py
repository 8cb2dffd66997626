"""The shop's tables.

python -m shop.models   makes them; a real service does that in its migrations
"""

from decimal import Decimal
from uuid import UUID

from sqlalchemy import Numeric, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .settings import Settings


class Base(DeclarativeBase):
    """All tables."""


class Order(Base):
    """What a customer asked for."""

    __tablename__ = "purchase"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    paid: Mapped[bool] = mapped_column(default=False)
    reminders: Mapped[int] = mapped_column(default=0)


class Invoice(Base):
    """What a customer has to pay. Nothing keeps a second one of an order out, so one that is written twice shows."""

    __tablename__ = "invoice"

    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[UUID] = mapped_column(index=True)
    text: Mapped[str]


def create_tables(settings: Settings) -> None:
    """Make what is missing."""
    engine = create_engine(settings.sqlalchemy_url)
    Base.metadata.create_all(engine)
    engine.dispose()


if __name__ == "__main__":
    create_tables(Settings.from_environment())
