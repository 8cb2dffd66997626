"""What both MySQL libraries hear from a server where the bus's tables are not."""

from __future__ import annotations

ELSEWHERE = (1044, 1049, 1142, 1146)
"""No such database or table, or none that this user may see. The transaction that asked lives on."""
