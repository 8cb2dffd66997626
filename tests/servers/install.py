"""Install the servers that no wheel brings, from the system's packages where that may be done, and say what is missing.

`python -m tests.servers.install`: PostgreSQL, Redis and NATS come as wheels with the test extra, the first two
without TLS; the others do not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import find_program

__all__ = ["main"]

PACKAGES = {
    "MariaDB": ("mariadbd", "mariadb-server"),
    "RabbitMQ": ("rabbitmq-server", "rabbitmq-server"),
    "PostgreSQL with TLS": ("postgres", "postgresql"),
    "Redis with TLS": ("redis-server", "redis-server"),
}
_POSTGRESQL = tuple(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))
_FOLDERS = ("/usr/sbin", "/usr/local/bin", "/usr/lib/rabbitmq/bin", *_POSTGRESQL)


def main() -> int:
    """Install what is missing; 0, but 1 where CI is set and a server is still missing."""
    wanted = _missing()
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = [PACKAGES[name][1] for name in wanted]
        print(f"installing {', '.join(packages)} for the tests", flush=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=False)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        subprocess.run(install, env=quiet, check=False, stdout=subprocess.DEVNULL)
        wanted = _missing()
    for name in wanted:
        print(f"{name} is NOT tested: it is not installed (apt-get install {PACKAGES[name][1]})", file=sys.stderr)
    return 1 if wanted and os.environ.get("CI") else 0


def _missing() -> list[str]:
    return [name for name, (program, _) in PACKAGES.items() if find_program(program, folders=_FOLDERS) is None]


if __name__ == "__main__":
    raise SystemExit(main())
