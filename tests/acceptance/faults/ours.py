"""What other buses got wrong, and what ours would lose if one line of it were another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from easybus import message as messages
from easybus import points
from easybus.connection import Publisher
from easybus.engines.contract import Ack, Claimed
from easybus.engines.memory.driver import MemoryDriver
from easybus.engines.memory.keys import Keys
from easybus.engines.memory.queue import MemoryQueue
from easybus.message import Message
from easybus.receiving import pipeline, replay, settle
from easybus.receiving.pipeline import Pipeline
from easybus.receiving.settle import Settler
from easybus.receiving.within import ExactlyOnce
from easybus.sending.checkback import Checkback as Checker
from easybus.sending.relay import Relay
from easybus.sending.transaction import Transaction

from .. import simulation
from ..scenarios import (
    Checkback,
    Conflict,
    Dead,
    Deferred,
    Doubting,
    Handle,
    Outbox,
    Outgrown,
    Poison,
    Replay,
    Retry,
    Slow,
    Within,
)
from ..simulation import Plan
from .fault import Patch, fault, wrap

# ------------------------------------------------------------------------------------------------------- handling


@fault("deliveries are acked when they are fetched", Handle, Plan(deaths=["key.claimed"]))
def acks_at_fetch(patch: Patch) -> None:
    async def fetch(original: Any, self: MemoryDriver, queue: str, *args: Any) -> Any:
        found = await original(self, queue, *args)
        await self.settle(queue, [Ack(delivery) for delivery in found])
        return found

    wrap(patch, MemoryDriver, "fetch", fetch)


@fault("a retry is acked before it is published", Retry, Plan(deaths=["retry.publishing"]), "copying")
def retry_acks_first(patch: Patch) -> None:
    async def retry(original: Any, self: Settler, hand: Any, *args: Any) -> None:
        await self._ack(hand.delivery)
        await original(self, hand, *args)

    wrap(patch, Settler, "retry", retry)


@fault("a dead letter is acked before it is stored", Dead, Plan(deaths=["dead.storing"]))
def dead_acks_first(patch: Patch) -> None:
    async def dead(original: Any, self: Settler, delivery: Any, *args: Any, **kwargs: Any) -> None:
        await self._ack(delivery)
        await original(self, delivery, *args, **kwargs)

    wrap(patch, Settler, "dead", dead)


@fault("a replay removes the row before it publishes", Replay, Plan(calls={"publish:3": "fails"}))
def replay_removes_first(patch: Patch) -> None:
    async def replayed(original: Any, self: replay.Replayer, letter: Any) -> None:
        await self._letters.remove(letter.queue, letter.key, letter.fence)
        await original(self, letter)

    wrap(patch, replay.Replayer, "_replay", replayed)


@fault("BUSY is acked: a retry whose key is not yet released is gone", Retry, Plan(deaths=["retry.published"]))
def busy_is_acked(patch: Patch) -> None:
    patch.setattr(Settler, "busy_elsewhere", Settler.ack)


@fault("a lost claim is never taken over", Handle, Plan(deaths=["key.claimed"]))
def claims_never_lapse(patch: Patch) -> None:
    def claim(original: Any, self: Keys, claim: Any, *args: Any) -> Any:
        return original(self, msgspec.structs.replace(claim, lease=1e9), *args)

    wrap(patch, Keys, "claim", claim)


@fault(
    "DONE is forgotten at once: a copy is handled again",
    lambda: Handle(asks=True), Plan(calls={"publish:1": "loses"}),
)  # fmt: skip
def done_is_forgotten(patch: Patch) -> None:
    def leave(original: Any, self: Keys, token: str, state: str, until: float) -> Any:
        return original(self, token, state, 0.0)

    wrap(patch, Keys, "leave", leave)


@fault("the digest is not compared: another payload under a used id is dropped", Conflict)
def digest_ignored(patch: Patch) -> None:
    def claim(original: Any, self: Keys, claim: Any, *args: Any) -> Any:
        return original(self, msgspec.structs.replace(claim, digest=b""), *args)

    wrap(patch, Keys, "claim", claim)


def _retry_with(patch: Patch, change: Callable[[Any], Message]) -> None:
    async def retry(original: Any, self: Settler, hand: Any, *args: Any) -> None:
        hand.delivery = msgspec.structs.replace(hand.delivery, body=change(hand).to_bytes())
        await original(self, hand, *args)

    wrap(patch, Settler, "retry", retry)


@fault("a retry is published under a new id", Retry, Plan(deaths=["retry.published"]), "copying")
def retry_has_a_new_id(patch: Patch) -> None:
    def change(hand: Any) -> Message:
        return msgspec.structs.replace(Message.from_bytes(hand.delivery.body), id=messages.new_id())

    _retry_with(patch, change)


@fault("a retry carries what the handler made of its message", Retry)
def retry_is_spoilt(patch: Patch) -> None:
    _retry_with(patch, lambda hand: hand.message)


@fault(
    "a settlement that fails is given up with an ack",
    Retry, Plan(calls={"publish:3": "fails"}), "copying",
)  # fmt: skip
def failure_is_acked(patch: Patch) -> None:
    patch.setattr(Settler, "_left", lambda self, delivery, error: self._ack(delivery))


@fault("a retry that is refused for good is left to its lease, again and again", Outgrown)
def refused_retry_is_left(patch: Patch) -> None:
    patch.setattr(settle, "TooLarge", settle.BadDelay)


@fault("an exception in a handler counts as handled", Retry)
def exceptions_swallowed(patch: Patch) -> None:
    async def raised(self: Pipeline, hand: Any, error: BaseException) -> None:
        self._settler.done(hand)

    patch.setattr(Pipeline, "_raised", raised)


@fault("a takeover is handled without asking", lambda: Handle(asks=True), Plan(deaths=["handler.done"]))
def never_asked(patch: Patch) -> None:
    async def already_handled(self: Pipeline, hand: Any) -> bool:
        return False

    patch.setattr(Pipeline, "_already_handled", already_handled)


@fault("already_handled's None counts as handled", lambda: Doubting(asks=True), Plan(deaths=["key.claimed"]))
def none_is_handled(patch: Patch) -> None:
    async def asked(original: Any, *args: Any) -> Any:
        answer = await original(*args)
        return True if answer is None else answer

    wrap(patch, pipeline, "call_with_message", asked)


@fault("starts are not counted: poison kills for ever", lambda: Poison(simulation.die_in))
def starts_not_counted(patch: Patch) -> None:
    def claim(original: Any, *args: Any) -> Any:
        result = original(*args)
        return msgspec.structs.replace(result, starts=1) if isinstance(result, Claimed) else result

    wrap(patch, Keys, "claim", claim)


@fault("what waits behind poison counts as begun", lambda: Poison(simulation.die_in, at_once=True))
def waiting_counts(patch: Patch) -> None:
    async def one_suspect(self: Pipeline, taken: list[Any]) -> list[Any]:
        return taken

    patch.setattr(Pipeline, "one_suspect", one_suspect)


@fault("leases are not renewed: a slow handler runs twice", Slow)
def no_renewal(patch: Patch) -> None:
    async def extend(self: Settler, hands: Any, lease: float) -> list[Any]:
        return []

    patch.setattr(Settler, "extend", extend)


@fault("a dead process's deliveries stay in flight for ever", Handle, Plan(deaths=["delivery.fetched"]))
def leases_never_end(patch: Patch) -> None:
    wrap(patch, MemoryQueue, "take", lambda original, self, limit, now, lease: original(self, limit, now, 1e9))


# ---------------------------------------------------------------------------------------------------- exactly once


@fault("DONE is written after the transaction, not in it", Within, Plan(deaths=["within.committed"]), "sqlite")
def done_after_commit(patch: Patch) -> None:
    async def call(self: ExactlyOnce, hand: Any, invoker: Any) -> Any:
        async with self._begin() as transaction:
            result = await invoker.call(hand.message, hand.payload, transaction)
        await points.reach("within.committed")
        await self._keys.complete([(hand.token, self._keep)])
        return result

    patch.setattr(ExactlyOnce, "call", call)


@fault("a commit that failed is acked", Within, Plan(calls={"commit:1": "fails"}), "sqlite")
def failed_commit_is_acked(patch: Patch) -> None:
    async def reread(self: Settler, hand: Any) -> None:
        await self._ack(hand.delivery)

    patch.setattr(Settler, "reread", reread)


# -------------------------------------------------------------------------------------------------------- sending


@fault("the half is removed before its message is published", Checkback, Plan(deaths=["half.published"]))
def removed_before_published(patch: Patch) -> None:
    async def succeed(self: Transaction) -> None:
        await self._stop_extending()
        await self._storage.remove(self._half.id, self._token)
        await points.reach("half.published")
        await self._publish()

    patch.setattr(Transaction, "_succeed", succeed)


@fault("committed's None discards the half", Checkback)
def none_discards(patch: Patch) -> None:
    async def ask_later(self: Checker, half: Any, *_: Any) -> None:
        await self._storage.remove(half.id, half.token)

    patch.setattr(Checker, "_ask_later", ask_later)


@fault("a checker removes a half that it could not publish", Checkback, Plan(calls={"publish:2": "fails"}))
def removed_unpublished(patch: Patch) -> None:
    async def publish(original: Any, self: Checker, half: Any) -> bool:
        await original(self, half)
        half.token = (await self._storage.fetch(half.id) or half).token
        return True

    wrap(patch, Checker, "_publish", publish)


@fault("a rolled back block is published", Checkback)
def rollback_publishes(patch: Patch) -> None:
    patch.setattr(Transaction, "_roll_back", Transaction._succeed)


@fault("the core's pump acks before it publishes", Deferred, Plan(calls={"publish:3": "fails"}))
def pump_acks_first(patch: Patch) -> None:
    async def publish_due(original: Any, self: Publisher, due: Any) -> None:
        await self.driver.settle("easybus.deferred", [Ack(delivery) for delivery in due])
        await original(self, due)

    wrap(patch, Publisher, "_publish_due", publish_due)


@fault(
    "a relay deletes before it publishes",
    lambda: Outbox(asks=True), Plan(calls={"publish:1": "fails"}), "sqlite",
)  # fmt: skip
def relay_deletes_first(patch: Patch) -> None:
    async def round_(original: Any, self: Relay, taken: Any) -> Any:
        await self._outbox.delete([(each.rows[0].id, each.rows[0].token) for each in taken])
        return await original(self, taken)

    wrap(patch, Relay, "_round", round_)


@fault(
    "a transaction's rows go in one batch: the second is there when the first is not",
    lambda: Outbox(asks=True), Plan(calls={"publish:1": "first fails"}, unbroken=False, tidy=True), "sqlite",
)  # fmt: skip
def rows_in_one_batch(patch: Patch) -> None:
    async def claim(original: Any, self: Relay, limit: int) -> Any:
        taken = await original(self, limit)
        return [type(each)(deque([row]), each.until) for each in taken for row in each.rows]

    wrap(patch, Relay, "_claim", claim)


@fault(
    "a transaction's rows go in one batch, none behind the one before: the second is there when the first is not",
    lambda: Outbox(asks=True), Plan(calls={"publish:1": "first fails"}, tidy=True), "sqlite",
)  # fmt: skip
def rows_not_behind(patch: Patch) -> None:
    async def publish(original: Any, self: Publisher, batch: Any) -> Any:
        return await original(self, [msgspec.structs.replace(item, behind=False) for item in batch])

    wrap(patch, Publisher, "publish_unbroken", publish)
