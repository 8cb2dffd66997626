"""A PostgreSQL primary and its standby, which must have what was confirmed (synchronous_standby_names).

PostgreSQL elects nobody: what an operator, or Patroni, does is done here. The standby is promoted, and what was the
primary is made anew as the standby of the other.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable

from . import HOST, Server
from .cluster import Cluster, until
from .postgresql import PASSWORD, PostgresqlServer

__all__ = ["PostgresqlPair"]


class _Node(PostgresqlServer):
    """One of the two; `source`: whose standby it begins as."""

    name = "postgresql-node"
    source: _Node | None = None

    def prepare(self) -> None:
        if self.source is None:
            super().prepare()
            return
        shutil.rmtree(self._data, ignore_errors=True)
        address = ("-h", HOST, "-p", str(self.source.port), "-U", "postgres")
        self.run(str(self._bin / "pg_basebackup"), *address, "-D", str(self._data), "-R", "-c", "fast", "--no-sync")

    def begin_as_standby_of(self, source: _Node) -> None:
        self.source, self._prepared = source, False
        self.start()


class PostgresqlPair(Cluster):
    """`waits=False`: replication that confirms before the standby has it, PostgreSQL's default."""

    def __init__(self, *, waits: bool = True) -> None:
        self.nodes = [_Node(), _Node()]
        self._primary, self._standby = self.nodes
        self._waits = waits
        self._numbers = itertools.count(1)

    def begin(self) -> None:
        self._primary.start()
        self._follow()

    def _follow(self) -> None:
        self._standby.begin_as_standby_of(self._primary)
        until(self._state, "the standby does not stream")
        if self._waits:
            self._primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self._primary.psql("SELECT pg_reload_conf()")

    def _state(self) -> str:
        return self._primary.psql("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")

    def leader(self) -> _Node:
        return self._primary

    def whole(self) -> bool:
        return all(node.up for node in self.nodes) and self._state() == ("sync" if self._waits else "async")

    def _hurt(self, hurt: Callable[[Server], None]) -> Server:
        leader = super()._hurt(hurt)
        self._promote()
        return leader

    def _promote(self) -> None:
        self._standby.psql("SELECT pg_promote(true, 30)")
        self._primary, self._standby = self._standby, self._primary

    def sql(self, statement: str) -> str:
        """Run it on the primary."""
        return self._primary.psql(statement)

    def heal(self) -> None:
        """What was the primary awakes, is shut out, and begins anew as the standby."""
        if not self._standby.up or not self.whole():
            if self._standby.up:
                self._standby.thaw()
                time.sleep(1.0)  # two believe that they are the primary, until one is shut out
                self._standby.kill()
            self._primary.start()
            self._follow()
        until(self.whole, "the pair does not heal")

    def url(self, database: str = "postgres", **options: object) -> str:
        """The URL of both, with a fresh schema."""
        given = {"schema": f"c{next(self._numbers)}"} | options
        query = "&".join(f"{name}={value}" for name, value in given.items())
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        return f"postgresql://postgres:{PASSWORD}@{hosts}/{database}?{query}"
