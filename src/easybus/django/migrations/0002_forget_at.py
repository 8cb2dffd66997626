from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations
from django.db.migrations.operations.base import Operation

from easybus.django.tables import BusTables


class Migration(migrations.Migration):
    dependencies: ClassVar[Sequence[tuple[str, str]]] = [("easybus", "0001_initial")]
    operations: ClassVar[Sequence[Operation]] = [BusTables()]
