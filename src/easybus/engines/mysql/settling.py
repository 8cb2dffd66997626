"""Acks, nacks, extensions and moves: each acts under (id, attempt, owner), a batch in one transaction.

Acks are looked at under their rows' locks first: a DELETE of many rows does not tell which of them it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from .. import contract
from ..contract import Ack, Delivery, Extend, Move, Nack
from .link import BEGIN, COMMIT, Link, Step
from .names import micros
from .picking import parts

Receipt: TypeAlias = tuple[int, int]
"""The row's id, and the owner that it was delivered to."""

_FENCED = "WHERE id = %s AND attempt = %s AND owner = %s"
_NACK = f"UPDATE {{message}} SET visible_at = {{now}} + %s, owner = 0 {_FENCED}"
_EXTEND = f"UPDATE {{message}} SET visible_at = {{now}} + %s {_FENCED}"
_MOVE = (  # the retry takes the delivery's place in one step
    f"UPDATE {{message}} SET visible_at = {{now}} + %s, body = %s, attempt = 0, owner = 0 {_FENCED}"
)
_HELD = "SELECT id, owner FROM {message} WHERE %s FOR UPDATE"  # which of these are their owners' still
_ACK = "DELETE FROM {message} WHERE %s"


async def settle(link: Link, batch: Sequence[contract.Settlement]) -> list[bool]:
    """Whether each was its delivery's owner's to settle; a second one of the same delivery is not."""
    # In the order of the rows, acks first: two batches then lock them in one order.
    acks = sorted((item.delivery for item in batch if isinstance(item, Ack)), key=lambda one: one.receipt[0])
    others = sorted(
        (at for at, item in enumerate(batch) if not isinstance(item, Ack)), key=lambda at: batch[at].delivery.receipt[0]
    )
    steps, looks = ack_steps(acks)
    results = await link.run(BEGIN, *steps, *[_step(batch[at]) for at in others], COMMIT)
    owned: set[Receipt] = {(row[0], row[1]) for at in looks for row in results[1 + at].rows}
    settled = [False] * len(batch)
    for at, item in enumerate(batch):
        if isinstance(item, Ack):
            settled[at] = item.delivery.receipt in owned
            owned.discard(item.delivery.receipt)
    for at, result in zip(others, results[1 + len(steps) :], strict=False):
        settled[at] = result.changed == 1
    return settled


def ack_steps(deliveries: Sequence[Delivery]) -> tuple[list[Step], range]:
    """The steps that ack these, and which of them give the (id, owner) of those that they ack."""
    steps: list[Step] = []
    for part in parts([fence(one) for one in deliveries], "attempt", "owner"):
        steps += [(_HELD, part.where), (_ACK, part.where)]
    return steps, range(0, len(steps), 2)


def fence(delivery: Delivery) -> tuple[int, int, int]:
    """Id, attempt and owner."""
    return (delivery.receipt[0], delivery.attempt, delivery.receipt[1])


def _step(item: contract.Settlement) -> Step:
    if isinstance(item, Extend):
        return (_EXTEND, micros(item.lease), *fence(item.delivery))
    if isinstance(item, Move):
        return (_MOVE, micros(item.delay), item.body, *fence(item.delivery))
    assert isinstance(item, Nack)  # noqa: S101 - for the type checker
    return (_NACK, micros(item.delay), *fence(item.delivery))
