"""compose.yaml is what docs/engines.md asks for. Its settings are run, on servers of our own; its images are not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.servers import HOST
from tests.servers.mariadb import MariadbServer
from tests.servers.nats import NatsServer
from tests.servers.postgresql import PostgresqlServer
from tests.servers.redis import PASSWORD, RedisServer

from easybus import Bus

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ASKED = {  # what docs/engines.md says before the oldest version
    "postgresql": r"PostgreSQL (\d+) or later",
    "mariadb": r"MariaDB (\d+\.\d+), or later",
    "rabbitmq": r"RabbitMQ (\d+\.\d+) or later",
    "valkey": r"Redis (\d+\.\d+) or later, or Valkey",
    "nats": r"NATS (\d+\.\d+) or later",
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@pytest.mark.parametrize("name", ASKED)
def test_each_server_is_as_new_as_the_documentation_asks(name: str) -> None:
    asked = re.search(ASKED[name], (ROOT / "docs" / "engines.md").read_text())
    assert asked is not None
    image, _, tag = SERVICES[name]["image"].partition(":")
    has = re.match(r"\d+(\.\d+)*", tag)
    assert has is not None, f"{image}:{tag} may be any version"
    assert version(has[0]) >= version(asked[1])[: len(version(has[0]))]


@pytest.mark.parametrize("name", SERVICES)
def test_each_server_is_of_this_machine_alone_and_says_when_it_is_up_and_keeps_its_data(name: str) -> None:
    service = SERVICES[name]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} < set(service["healthcheck"])
    assert service["volumes"][0].partition(":")[0] in COMPOSE["volumes"]
    assert {each["source"] for each in service.get("configs", [])} <= set(COMPOSE["configs"])


def test_all_engines_that_have_a_server_are_there() -> None:
    assert set(SERVICES) == set(ASKED)
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"^#   (\w+)://", text, re.MULTILINE)) == {"postgresql", "mysql", "amqp", "redis", "nats"}


# --------------------------------------------------------------------- the settings themselves, on servers of our own


class Valkey(RedisServer):
    def command(self) -> list[str]:
        own = ["--bind", HOST, "--port", str(self.port), "--dir", str(self.folder), "--requirepass", PASSWORD]
        return [self._program, *SERVICES["valkey"]["command"][1:], *own]


class Mariadb(MariadbServer):
    def command(self) -> list[str]:
        return [*super().command(), *SERVICES["mariadb"]["command"]]


class Postgresql(PostgresqlServer):
    def command(self) -> list[str]:
        return [*super().command(), *SERVICES["postgresql"]["command"][1:]]


@pytest.fixture(params=[Valkey, Mariadb, Postgresql])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    server = request.param()
    try:
        server.start()
        yield server.url()
    finally:
        server.remove()


async def test_easybus_check_finds_nothing_in_these_settings(url: str) -> None:
    bus = Bus(url)
    numbers = bus.queue("numbers", int)

    @numbers.handler
    async def take(number: int) -> None: ...

    report = await bus.check()
    assert (report.contradictions, report.notes) == ([], [])


def test_nats_takes_its_settings_and_writes_each_message_to_the_disk(tmp_path: Path) -> None:
    content = COMPOSE["configs"]["nats"]["content"]
    assert "sync_interval: always" in content
    program = NatsServer().command()[0]
    config = tmp_path / "easybus.conf"
    config.write_text(content.replace("/data", str(tmp_path)))
    done = subprocess.run([program, "-t", "--config", config], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
