"""Dead letters in the admin, in real storages: seen, retried and deleted by those who may, and nothing raw is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connections
from django.test import Client

from easybus import Bus, Message
from easybus.engines.contract import DeadLetter

LIST = "/admin/easybus/deadletter/"
SECRET = "canary-3e91"


@pytest.fixture(scope="module", autouse=True)
def _migrated() -> None:
    call_command("migrate", database="default", verbosity=0)


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def bus(request: pytest.FixtureRequest, project: Callable[[Bus], Bus], tmp_path: Path) -> Iterator[Bus]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/bus.db"
    elif request.param == "postgresql":
        url = request.getfixturevalue("postgresql_server").schema()
    else:
        url = request.getfixturevalue("redis_server").url()
    bus = project(Bus(url, service="admin"))
    bus.queue("receipts", dict)
    bus.queue("emails", dict)
    bus.blocking.open()
    yield bus
    bus.blocking.close()


def letter(bus: Bus, queue: str, payload: bytes, **given: Any) -> str:
    """Keep one; returns its message's id."""
    message = Message(id=given.pop("id", ""), payload=payload, route_key="paid", headers=given.pop("headers", {}))
    if not message.id:
        message = Message.new(json.loads(payload), route_key="paid")
    kept = DeadLetter(
        queue=queue,
        message_id=message.id,
        body=message.to_bytes(),
        reason=given.pop("reason", "ValueError: no such order"),
        error_type="ValueError",
        error="no such order",
        traceback=given.pop("traceback", 'Traceback ...\n  File "shop.py", line 3\nValueError: no such order'),
        attempts=8,
        first_failed=1_700_000_000.0,
        last_failed=1_700_003_600.0,
        **given,
    )
    bus.blocking.call(bus.dead_letters.store(kept))
    return message.id


def client(*permissions: str, superuser: bool = False) -> Client:
    """Logged in as one of the staff, with these permissions on dead letters."""
    user, _ = User.objects.get_or_create(
        username=f"staff-{'-'.join(permissions) or superuser}", is_staff=True, is_superuser=superuser
    )
    for name in permissions:
        user.user_permissions.add(Permission.objects.get(codename=f"{name}_deadletter"))
    made = Client()
    made.force_login(user)
    return made


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    connections["default"].close()


def addresses(page: str) -> list[str]:
    return re.findall(r'name="letter" value="([^"]+)"', page)


def left(bus: Bus) -> dict[str, int]:
    return {queue: number for queue, number in bus.blocking.call(bus.dead_letters.count()).items() if number}


def test_the_list_shows_what_failed_and_can_be_narrowed(bus: Bus) -> None:
    first = letter(bus, "receipts", b'{"order": 1}')
    second = letter(bus, "emails", b'{"to": "ann"}', reason="rejected: no such address")
    admin = client(superuser=True)
    assert "Dead letters" in admin.get("/admin/").content.decode()
    page = admin.get(LIST).content.decode()
    for text in (first, second, "receipts", "emails", "no such order", ">8<", "2 of 2"):
        assert text in page
    assert len(re.findall(r"nowrap.>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d<", page)) == 4
    page = admin.get(LIST, {"queue": "emails"}).content.decode()
    assert second in page
    assert first not in page
    page = admin.get(LIST, {"reason": "rejected"}).content.decode()
    assert second in page
    assert first not in page
    assert "There are no such dead letters" in admin.get(LIST, {"reason": "nothing like it"}).content.decode()


def test_a_letter_is_shown_whole(bus: Bus) -> None:
    named = letter(bus, "receipts", b'{"order": 1, "lines": [2]}', headers={"tenant": "north"}, id="order-1")
    admin = client("view")
    (address,) = re.findall(rf'href="{LIST}([^"/]+)/"', admin.get(LIST).content.decode())
    page = admin.get(f"{LIST}{address}/").content.decode()
    for text in (named, "paid", "Header tenant", "north", "&quot;order&quot;: 1", "shop.py", "line 3", "8"):
        assert text in page
    assert admin.get(f"{LIST}{address}xx/").status_code == 404
    assert admin.get(f"{LIST}nonsense/").status_code == 404


def test_what_came_from_anywhere_is_never_shown_raw(bus: Bus) -> None:
    evil = "<script>alert(1)</script>\x1b[31m\u202e"
    letter(
        bus,
        "receipts",
        json.dumps({evil: evil, "password": SECRET, "nested": [{"api_key": SECRET}]}).encode(),
        id=evil,
        headers={"authorization": f"Bearer {SECRET}", "x": evil},
        reason=f"{evil} postgresql://u:{SECRET}@host/db",
        traceback=f"{evil}\nconnect('amqp://u:{SECRET}@host')",
    )
    letter(bus, "emails", b"\xff\x00\x1b[2J", id="bytes")
    admin = client(superuser=True)
    page = admin.get(LIST).content.decode()
    pages = [page, admin.post(LIST, {"action": "delete", "letter": addresses(page)}).content.decode()]
    pages += [admin.get(f"{LIST}{address}/").content.decode() for address in addresses(page)]
    assert len(pages) == 4
    for text in pages:
        assert SECRET not in text
        assert "<script>alert" not in text
        assert not set(text) & set("\x1b\x00\u202e")
    assert "\\x1b[31m" in page
    assert any("***" in text for text in pages)


def test_a_retry_marks_what_was_picked(bus: Bus) -> None:
    named = letter(bus, "receipts", b'{"order": 1}')
    letter(bus, "emails", b'{"to": "ann"}')
    admin = client("view", "change")
    picked = addresses(admin.get(LIST, {"queue": "receipts"}).content.decode())
    answer = admin.post(LIST, {"action": "retry", "letter": picked}, follow=True)
    assert "1 dead letter marked for retry" in answer.content.decode()
    assert "marked for retry</td>" in answer.content.decode()
    (marked,) = [one.message_id for one in bus.blocking.call(bus.dead_letters.find()) if one.marked]
    assert marked == named
    assert left(bus) == {"receipts": 1, "emails": 1}


def test_a_delete_asks_first(bus: Bus) -> None:
    letter(bus, "receipts", b'{"order": 1}')
    kept = letter(bus, "receipts", b'{"order": 2}')
    admin = client("view", "delete")
    picked = addresses(admin.get(LIST).content.decode())[:1]
    asked = admin.post(LIST, {"action": "delete", "letter": picked}).content.decode()
    assert "Are you sure?" in asked
    assert left(bus) == {"receipts": 2}
    answer = admin.post(LIST, {"action": "delete", "letter": picked, "confirmed": "yes"}, follow=True)
    assert "1 dead letter deleted" in answer.content.decode()
    assert left(bus) == {"receipts": 1}
    assert kept


def test_a_letters_own_page_retries_and_deletes_too(bus: Bus) -> None:
    letter(bus, "receipts", b'{"order": 1}')
    admin = client(superuser=True)
    (address,) = addresses(admin.get(LIST).content.decode())
    assert "1 dead letter marked" in admin.post(f"{LIST}{address}/", {"action": "retry"}, follow=True).content.decode()
    assert "Are you sure?" in admin.post(f"{LIST}{address}/", {"action": "delete"}).content.decode()
    assert left(bus) == {"receipts": 1}


@pytest.mark.parametrize("bus", ["sqlite"], indirect=True)
def test_permissions_are_respected(bus: Bus) -> None:
    letter(bus, "receipts", b'{"order": 1}')
    picked = addresses(client(superuser=True).get(LIST).content.decode())
    assert client().get(LIST).status_code == 403
    assert client().get(f"{LIST}{picked[0]}/").status_code == 403
    assert "dead letter" not in client().get("/admin/").content.decode().lower()
    assert Client().get(LIST).status_code == 302
    viewer = client("view")
    page = viewer.get(LIST).content.decode()
    assert "receipts" in page
    assert 'name="action"' not in page
    for action in ("retry", "delete"):
        given = {"action": action, "letter": picked, "confirmed": "yes"}
        assert viewer.post(LIST, given).status_code == 403
        assert viewer.post(f"{LIST}{picked[0]}/", given).status_code == 403
    assert client("view", "change").post(LIST, {"action": "delete", "letter": picked}).status_code == 403
    assert client("view", "delete").post(LIST, {"action": "retry", "letter": picked}).status_code == 403
    (one,) = bus.blocking.call(bus.dead_letters.find())
    assert not one.marked
    assert viewer.get(f"{LIST}add/").status_code == 404


@pytest.mark.parametrize("bus", ["sqlite"], indirect=True)
def test_forged_posts_are_refused(bus: Bus) -> None:
    letter(bus, "receipts", b'{"order": 1}')
    admin = client(superuser=True)
    checking = Client(enforce_csrf_checks=True)
    checking.force_login(User.objects.get(username="staff-True"))
    picked = addresses(admin.get(LIST).content.decode())
    given = {"action": "delete", "letter": picked, "confirmed": "yes"}
    assert checking.post(LIST, given).status_code == 403
    assert checking.post(f"{LIST}{picked[0]}/", given).status_code == 403
    assert admin.post(LIST, {"action": "retry", "letter": ["%%%"]}).status_code == 400
    assert left(bus) == {"receipts": 1}


def test_a_storage_that_cannot_be_reached_is_said_without_its_password(project: Callable[[Bus], Bus]) -> None:
    bus = project(Bus(f"redis://:{SECRET}@127.0.0.1:1/0"))
    answer = client(superuser=True).get(LIST)
    assert answer.status_code == 503
    assert "cannot be read now" in answer.content.decode()
    assert SECRET not in answer.content.decode()
    bus.blocking.close()


def test_a_bus_that_keeps_letters_in_queues_is_told_to_have_a_storage(
    project: Callable[[Bus], Bus], tmp_path: Path
) -> None:
    bus = project(Bus(f"sqlite:///{tmp_path}/bus.db", dead_letters="queue"))
    assert "give it one" in client(superuser=True).get(LIST).content.decode()
    bus.blocking.close()
