"""Servers that speak TLS, with a certificate of their own for 127.0.0.1 (and no other name), which signs itself."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import HOST, Server, find_program, free_port, missing
from .mariadb import MariadbServer
from .postgresql import PostgresqlServer
from .redis import RedisServer

__all__ = ["SecureMariadb", "SecurePostgresql", "SecureRedis", "certify"]


def certify(server: Server) -> tuple[Path, Path]:
    """Make the certificate and its key in the server's folder, for its user."""
    if shutil.which("openssl") is None:
        missing("openssl, which makes certificates")
    certificate, key = server.folder / "certificate.pem", server.folder / "key.pem"
    server.run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=easybus"),
        *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(certificate)),
    )
    return certificate, key


class SecurePostgresql(PostgresqlServer):
    """The system's, for the wheel's is built without TLS."""

    def __init__(self) -> None:
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        program = find_program("postgres", folders=tuple(str(path) for path in system))
        if program is None:
            missing("PostgreSQL with TLS (apt-get install postgresql)")
        super().__init__(program)

    def prepare(self) -> None:
        super().prepare()
        self.certificate, self.key = certify(self)

    def command(self) -> list[str]:
        files = {"ssl_cert_file": self.certificate, "ssl_key_file": self.key}
        return [*super().command(), "-c", "ssl=on", *(p for name, at in files.items() for p in ("-c", f"{name}={at}"))]


class SecureMariadb(MariadbServer):
    def prepare(self) -> None:
        super().prepare()
        self.certificate, self.key = certify(self)

    def command(self) -> list[str]:
        return [*super().command(), f"--ssl-cert={self.certificate}", f"--ssl-key={self.key}"]


class SecureRedis(RedisServer):
    """The system's, for the wheel's Valkey is built without TLS."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("Redis with TLS (apt-get install redis-server)")
        super().__init__(program=program)
        self.tls_port = free_port()

    def prepare(self) -> None:
        self.certificate, key = certify(self)
        self._options = ("--tls-port", str(self.tls_port), "--tls-auth-clients", "no")
        self._options += ("--tls-cert-file", str(self.certificate), "--tls-key-file", str(key))
        self._options += ("--tls-ca-cert-file", str(self.certificate))
