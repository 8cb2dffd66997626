from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.db import migrations, models
from django.db.migrations.operations.base import Operation

from easybus.django.tables import BusTables


class Migration(migrations.Migration):
    initial = True

    operations: ClassVar[Sequence[Operation]] = [
        migrations.CreateModel(
            name="DeadLetter",
            fields=[("key", models.CharField(max_length=255, primary_key=True, serialize=False))],
            options={
                "verbose_name": "dead letter",
                "verbose_name_plural": "dead letters",
                "managed": False,
                "default_permissions": ("view", "change", "delete"),
            },
        ),
        BusTables(),
    ]
