"""RabbitMQ of the system, as a node of its own beside any that runs. EASYBUS_TEST_RABBITMQ names another `sbin`.

It needs an epmd, as every Erlang node does: one that runs is used, else the node starts one, which stays.
"""

from __future__ import annotations

import itertools
import os
import pwd
import socket
from pathlib import Path
from urllib.parse import quote

from . import HOST, Server, find_program, free_port, missing

PASSWORD = "canary-5e1c"
"""The user's: no log, error, repr or URL that easybus shows may hold it."""


class RabbitmqServer(Server):
    """A node of its own; `vhost()` gives each test a place of its own."""

    name = "rabbitmq"

    def __init__(self) -> None:
        chosen = os.environ.get("EASYBUS_TEST_RABBITMQ")
        system = sorted(
            Path("/usr/lib/rabbitmq/lib").glob("*/sbin"), reverse=True
        )  # the wrapper on PATH insists on root
        folders = (chosen,) if chosen else tuple(str(path) for path in system)
        found = find_program("rabbitmq-server", folders=folders)
        if found is None:
            missing("RabbitMQ (apt install rabbitmq-server)")
        self._bin = Path(found).parent
        try:
            self.user = pwd.getpwnam("rabbitmq").pw_name
        except KeyError:
            self.user = None
        self._numbers = itertools.count(1)
        super().__init__()
        self._distribution = free_port()
        self.tls_port = free_port()

    @property
    def certificate(self) -> Path:
        """Its own, signed by itself, for its address; beside it the key."""
        return self.folder / "certificate.pem"

    def prepare(self) -> None:
        key = self.folder / "key.pem"
        self.run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=easybus"),
            *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(self.certificate)),
        )
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            f"listeners.ssl.1 = {HOST}:{self.tls_port}\n"
            f"ssl_options.certfile = {self.certificate}\nssl_options.keyfile = {key}\n"
            f"ssl_options.cacertfile = {self.certificate}\nssl_options.verify = verify_none\n"
            f"distribution.listener.interface = {HOST}\n"
            f"default_user = bus\ndefault_pass = {PASSWORD}\n"
            "default_permissions.configure = .*\ndefault_permissions.read = .*\ndefault_permissions.write = .*\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.relative = 0.8\n"
        )
        # What came due while it was down is tried again after this (3 minutes by default), as docs/engines.md says.
        (self.folder / "advanced.config").write_text(
            "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}].\n"
        )
        (self.folder / "enabled_plugins").write_text("[].\n")

    def command(self) -> list[str]:
        return [str(self._bin / "rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        data = str(self.folder)
        return {
            "RABBITMQ_NODENAME": f"easybus-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": f"{data}/rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{data}/advanced.config",
            "RABBITMQ_MNESIA_BASE": f"{data}/mnesia",
            "RABBITMQ_LOG_BASE": f"{data}/log",
            "RABBITMQ_PID_FILE": f"{data}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{data}/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none",
            "LC_ALL": "C.UTF-8",
        }

    def answers(self) -> bool:
        """Whether it speaks AMQP: the port alone opens a little earlier."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                probe.settimeout(2.0)
                return bool(probe.recv(8))
        except OSError:
            return False

    def control(self, *command: str) -> str:
        """`rabbitmqctl`: about a second."""
        return self.run(str(self._bin / "rabbitmqctl"), "--node", f"easybus-{self.port}@localhost", *command)

    def url(self, host: str = HOST, port: int | None = None, **options: object) -> str:
        """The URL of its one virtual host."""
        query = "&".join(f"{name}={quote(str(value))}" for name, value in options.items())
        return f"amqp://bus:{PASSWORD}@{host}:{port or self.port}/" + (f"?{query}" if query else "")
