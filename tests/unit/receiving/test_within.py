"""A handler's transaction that takes the ack along."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from easybus.engines.contract import Delivery, Finish
from easybus.message import Message
from easybus.receiving.hand import Hand
from easybus.receiving.invoke import Invoker, Providers
from easybus.receiving.within import ExactlyOnce


class Finishing:
    def finishing(self, item: Finish) -> tuple[str, tuple[Any, ...]]:
        return "", ()


async def handle(payload: int) -> None: ...


async def complete(transaction: Any, statement: str, parameters: Sequence[Any]) -> int:
    return 1


@pytest.mark.parametrize("commits", [True, False])
async def test_a_delivery_is_extended_again_when_the_transaction_that_was_to_ack_it_did_not_commit(
    commits: bool,
) -> None:
    @asynccontextmanager
    async def begin() -> AsyncIterator[object]:
        yield object()
        if not commits:
            raise ValueError("a constraint that is looked at in the end")

    keys: Any = None
    once = ExactlyOnce(begin, keys, 60.0, complete, Finishing())
    invoker = Invoker(handle, Providers({}))
    hand = Hand(Delivery("jobs", b"", 1, None), Message(id="1"), 1, invoker, "1", 1, "token", 30.0)
    if commits:
        await once.call(hand, invoker)
    else:
        with pytest.raises(ValueError, match="constraint"):
            await once.call(hand, invoker)
    assert hand.acked == commits
