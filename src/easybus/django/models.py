"""What the admin's pages and permissions hang on. Dead letters lie in the bus's storage, wherever that is: no table."""

from __future__ import annotations

from django.db import models


class DeadLetter(models.Model):
    """A message that could not be handled."""

    key: models.CharField[str, str] = models.CharField(max_length=255, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"
