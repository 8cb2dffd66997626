"""The named points between two I/O steps, where a process may die.

Tests set a hook and kill, pause or fail there; without a hook a point costs one comparison:

    if points.hook is not None: await points.reach("half.stored")

Every point is named in `POINTS`, and reaching any other is an error, so that a test over all of them misses none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["POINTS", "hook", "reach"]

POINTS: dict[str, str] = {
    # sending with check-back
    "half.storing": "T1: before the half is stored",
    "half.stored": "T3: the half is stored, the work has not begun",
    "work.done": "T6: the work is done, the message is not published",
    "half.published": "T8: published and confirmed, the half is not removed",
    "half.removed": "after the half is removed",
    "check.claimed": "C1: a checker claimed the half and has not asked",
    "check.answered": "C1: the answer is there and not acted on",
    "check.published": "C1: the checker published, the half is not removed",
    # the outbox
    "outbox.claimed": "a relay claimed rows and has not published",
    "outbox.published": "rows are published and confirmed, not deleted",
    "outbox.deleted": "after the rows are deleted",
    # handling
    "delivery.fetched": "H1: fetched, not claimed",
    "key.claimed": "H2: claimed, the handler has not begun",
    "handler.done": "H5: the effect is there, DONE is not written",
    "key.completed": "H6: DONE is written, not acked",
    "delivery.acked": "after the ack",
    "within.effect": "the handler's statements are done, DONE is not in the transaction",
    "within.done": "DONE is the transaction's last statement, not committed",
    "within.committed": "the transaction is committed, the delivery is not acked",
    "retry.publishing": "F1: the retry is not yet published",
    "retry.published": "F2: the retry is published, the key is not released",
    "retry.released": "F3: the key is released, the delivery is not acked",
    "dead.storing": "before the dead letter is stored",
    "dead.stored": "L1: the dead letter is stored, the key is not released",
    "dead.released": "the key is released, the delivery is not acked",
    "replay.fetched": "a marked dead letter is claimed, not published",
    "replay.published": "L2: replayed, the row is still there",
    "replay.removed": "after the row is removed",
}

hook: Callable[[str], Awaitable[None]] | None = None


async def reach(name: str) -> None:
    """Run the test's hook at this point."""
    if name not in POINTS:
        raise KeyError(f"no point is named {name!r}")
    if hook is not None:
        await hook(name)
