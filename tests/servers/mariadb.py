"""MariaDB, of the system. EASYBUS_TEST_MYSQL names the folder of another `mariadbd` and `mariadb-install-db`."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from . import HOST, Server, find_program, missing

PASSWORD = "canary-51be"
"""The user's: no log, error, repr or URL that easybus shows may hold it."""
USER = "bus"


class MariadbServer(Server):
    """A server of its own; `prefix()` gives each test tables of its own, `database()` a database."""

    name = "mariadb"
    user = "mysql"

    def __init__(self, *options: str) -> None:
        chosen = os.environ.get("EASYBUS_TEST_MYSQL")
        folders = (chosen,) if chosen else ("/usr/sbin", "/usr/local/bin")
        server = find_program("mariadbd", folders=folders)
        install = find_program("mariadb-install-db", folders=folders)
        client = find_program("mariadb", folders=folders)
        if server is None or install is None or client is None:
            missing("MariaDB (apt-get install mariadb-server)")
        self._server, self._install, self._client = server, install, client
        self._options = options
        self._numbers = itertools.count(1)
        super().__init__()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _socket(self) -> Path:
        return self.folder / "socket"

    def prepare(self) -> None:
        self.run(
            *(self._install, "--no-defaults", f"--datadir={self._data}", *self._options),
            *("--auth-root-authentication-method=normal", "--skip-test-db", f"--tmpdir={self.folder}"),
        )

    def command(self) -> list[str]:
        # Every commit is flushed, the server's default: what was confirmed must outlive whatever the tests do.
        return [
            *(self._server, "--no-defaults", f"--datadir={self._data}", f"--port={self.port}"),
            *(f"--bind-address={HOST}", f"--socket={self._socket}", f"--pid-file={self.folder / 'pid'}"),
            f"--tmpdir={self.folder}",  # what is left in a shared one, another server that starts would remove
            *("--max-connections=300", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=64M"),
            *self._options,
        ]

    def answers(self) -> bool:
        try:
            self.sql(
                f"CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON *.* TO {USER}@'%'; "
                "CREATE DATABASE IF NOT EXISTS test"
            )
        except RuntimeError:
            return False
        return True

    def configure(self, *options: str) -> None:
        """Its settings at the next start."""
        self._options = options

    @property
    def address(self) -> dict[str, Any]:
        """Where a client library connects to."""
        return {"host": HOST, "port": self.port, "user": USER, "password": PASSWORD, "database": "test"}

    def sql(self, statement: str) -> str:
        """Run statements as the superuser; returns the rows, by tabs."""
        return self.run(
            self._client, "--no-defaults", f"--socket={self._socket}", "-uroot", "-BN", "-e", statement
        ).strip()

    def database(self) -> str:
        """Make a fresh database; returns its URL."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE `{name}`")
        return self.url(name)

    def prefix(self) -> str:
        """The URL of tables of their own, which are made by whoever opens it: quicker than a database."""
        return f"{self.url()}?prefix=t{next(self._numbers)}_"

    def url(self, database: str = "test") -> str:
        """The URL of one of its databases."""
        return f"mysql://{USER}:{PASSWORD}@{HOST}:{self.port}/{database}"
