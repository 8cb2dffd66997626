"""A worker that kills itself at a point, or stalls there: `worker.py URL DATABASE POINT [stall]`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import django
from django.conf import settings

try:
    import MySQLdb  # noqa: F401 - mysqlclient
except ModuleNotFoundError:
    import pymysql

    pymysql.install_as_MySQLdb()

url, database, fatal, *how = sys.argv[1:]
settings.configure(DATABASES={"default": json.loads(database)})
django.setup()

from django.db import connection, transaction  # noqa: E402

from easybus import Bus, points  # noqa: E402

bus = Bus(url)
passed = asyncio.Event()


@bus.queue("payments", int).handler(within=transaction.atomic, lease=1)
def write(amount: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_payment (amount) VALUES (%s)", [amount])


async def reached(point: str) -> None:
    if point != fatal or passed.is_set():
        return
    if not how:
        os.kill(os.getpid(), signal.SIGKILL)
    passed.set()
    print("stalling", flush=True)
    await asyncio.sleep(0.5)  # stopped from outside meanwhile


async def main() -> None:
    points.hook = reached
    async with bus.handling():
        await passed.wait()
        await asyncio.sleep(2.0)


asyncio.run(main())
