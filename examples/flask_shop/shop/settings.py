"""What differs between machines, from the environment."""

import os
from dataclasses import dataclass, field

from sqlalchemy import URL, make_url

_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}


@dataclass(frozen=True)
class Settings:
    """The service's settings."""

    database: str = field(repr=False)
    """Where the shop's tables and the bus's lie: `postgresql://user:password@host/shop`, or
    `sqlite:///shop.db?library=sqlite3`."""

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read SHOP_DATABASE. Raises `KeyError` if it is not set."""
        return cls(database=os.environ["SHOP_DATABASE"])

    @property
    def sqlalchemy_url(self) -> URL:
        """The same database, as SQLAlchemy writes it."""
        url = make_url(self.database)
        return url.set(drivername=_DRIVERS[url.drivername], query={})
