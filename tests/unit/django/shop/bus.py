"""The bus of the project that these tests are."""

from __future__ import annotations

from easybus import Bus

bus = Bus("memory://", service="shop")
emails = bus.queue("emails", str)
