"""What the original Go library loses, each put into ours."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from typing import Any

from easybus import message as messages
from easybus.connection import Publisher
from easybus.engines.contract import Claimed, DeclareQueue, Done, Publication
from easybus.engines.memory.dead_letters import Letters
from easybus.engines.memory.keys import Keys
from easybus.engines.memory.space import Space
from easybus.engines.memory.transactions import Halves, MemoryTransactions
from easybus.errors import EngineError
from easybus.receiving import pipeline
from easybus.receiving.claim import Intake
from easybus.receiving.invoke import Invoker
from easybus.receiving.receiver import Receiver
from easybus.receiving.settle import Settler
from easybus.sending.transaction import Transaction

from .. import simulation
from ..scenarios import (
    Checkback,
    Doubting,
    Fresh,
    Handle,
    Replay,
    Retry,
    Slow,
)
from ..simulation import Plan
from .fault import Patch, fault, wrap


@fault("the default handler acks without handling", Handle, known=True)
def acks_unhandled(patch: Patch) -> None:
    async def nothing(self: Invoker, *_: Any) -> None: ...

    for call in ("_call", "_call_given", "_call_plain"):
        patch.setattr(Invoker, call, nothing)


@fault("idempotency store down: acked unhandled", Handle, Plan(calls={"claim:1": "fails"}), known=True)
def store_down_is_done(patch: Patch) -> None:
    async def claim(original: Any, self: Intake, wanted: list[Any]) -> list[Any]:
        try:
            return await original(self, wanted)
        except EngineError:
            return [None if one is None else Done() for one in wanted]

    wrap(patch, Intake, "_claim", claim)


@fault("killed after acquire: the redelivery is dropped", Handle, Plan(deaths=["key.claimed"]), known=True)
def takeover_is_done(patch: Patch) -> None:
    def claim(original: Any, *args: Any) -> Any:
        result = original(*args)
        return Done() if isinstance(result, Claimed) and result.before else result

    wrap(patch, Keys, "claim", claim)


@fault("a failure keeps the key, and the replayed dead letter is deleted unhandled", Replay, known=True)
def failure_keeps_the_key(patch: Patch) -> None:
    async def release(self: Settler, tokens: list[str]) -> list[bool]:
        return [True] * len(tokens)

    patch.setattr(Settler, "_release", release)
    patch.setattr(Settler, "busy_elsewhere", Settler.ack)


@fault("a failing release drops the retry", Retry, Plan(calls={"release:1": "fails"}), known=True)
def failing_release_drops(patch: Patch) -> None:
    async def retry(original: Any, self: Settler, hand: Any, *args: Any) -> None:
        try:
            await self._releases.add(hand.token)
        except EngineError:
            await self.ack(hand.delivery)
            return
        await original(self, hand, *args)

    wrap(patch, Settler, "retry", retry)


@fault(
    "two replays of one dead letter: the first one's removal takes what the second failure stored",
    Replay, Plan(stalls={"replay.published": 5.0}), known=True,
)  # fmt: skip
def removal_ignores_the_fence(patch: Patch) -> None:
    patch.setattr(Letters, "remove", lambda self, queue, key, fence: self.delete(queue, key))


@fault(
    "an exception in the check acks it",
    lambda: Doubting(asks=True), Plan(deaths=["key.claimed"]), known=True,
)  # fmt: skip
def exception_is_handled(patch: Patch) -> None:
    async def asked(original: Any, *args: Any) -> Any:
        try:
            return await original(*args)
        except Exception:
            return True

    wrap(patch, pipeline, "call_with_message", asked)


@fault(
    "a check during slow work discards a message whose work then succeeds",
    Checkback, Plan(deaths=["work.done"]), known=True,
)  # fmt: skip
def no_extension(patch: Patch) -> None:
    async def extend(self: Transaction, ended: asyncio.Future[None], due: float) -> None:
        await ended

    patch.setattr(Transaction, "_extend", extend)


@fault("an ambiguous commit deletes the half", Checkback, known=True)
def exception_deletes_the_half(patch: Patch) -> None:
    async def keep(self: Transaction, reason: BaseException) -> None:
        await self._stop_extending()
        await self._storage.remove(self._half.id, self._token)

    patch.setattr(Transaction, "_keep", keep)


@fault("halves are found by a second message, and that one was lost: an orphan", Checkback, known=True)
def halves_are_not_found(patch: Patch) -> None:
    async def claim_due(self: MemoryTransactions, *_: Any) -> list[Any]:
        return []

    patch.setattr(MemoryTransactions, "claim_due", claim_due)


@fault("two services on one topic eat each other's checks", Checkback, Plan(stranger=True), known=True)
def checks_of_others(patch: Patch) -> None:
    def due(self: Halves, scopes: Any, now: float) -> list[Any]:
        topics = {topic for _, topic in scopes}
        return [half for half in self.rows.values() if half.due <= now and half.topic in topics]

    patch.setattr(Halves, "due", due)


@fault("publishes without confirm", Handle, Plan(calls={"publish:1": "fails"}), known=True)
def no_confirm(patch: Patch) -> None:
    def publish(original: Any, self: Publisher, publication: Publication) -> asyncio.Future[int | None]:
        original(self, publication).add_done_callback(lambda done: done.cancelled() or done.exception())
        sent: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        sent.set_result(1)
        return sent

    wrap(patch, Publisher, "publish", publish)


@fault(
    "a broker outage kills the process's loop",
    Handle, Plan(calls={f"fetch:{at}": "fails" for at in (1, 2, 3)}), known=True,
)  # fmt: skip
def outage_kills(patch: Patch) -> None:
    async def take(original: Any, *args: Any) -> Any:
        try:
            return await original(*args)
        except EngineError as error:
            raise RuntimeError("connection lost") from error

    wrap(patch, Intake, "take", take)


@fault("a clean stop redelivers what was in flight", Slow, Plan(stop_after=5.0, tidy=True), known=True)
def stop_cuts_short(patch: Patch) -> None:
    async def cancel(self: Receiver, grace: float | None) -> None:
        for worker in self._workers:
            worker.cancel()

    patch.setattr(Receiver, "_wait_for_handlers", cancel)


@fault("dead-letter ids are reused", Replay, Plan(stalls={"replay.published": 5.0}), known=True)
def fences_are_reused(patch: Patch) -> None:
    patch.setattr(Letters, "_next_fence", lambda self: "1")


@fault("re-declaring empties a queue", Handle, Plan(deaths=["delivery.fetched"]), known=True)
def declaring_empties(patch: Patch) -> None:
    def declare(original: Any, self: Space, changes: Any) -> None:
        for change in changes:
            if isinstance(change, DeclareQueue):
                self.queues.pop(change.name, None)
        original(self, changes)

    wrap(patch, Space, "declare", declare)


@fault(
    "ids hang on the network address: two processes make the same",
    lambda: Fresh(asks=True), Plan(deaths=["delivery.acked"]), known=True,
)  # fmt: skip
def ids_of_the_host(patch: Patch) -> None:
    counts: weakref.WeakKeyDictionary[Any, Counter[str]] = weakref.WeakKeyDictionary()

    def new_id() -> str:
        numbers = counts.setdefault(simulation._current.get(), Counter())
        numbers["next"] += 1
        return f"10.0.0.1-{numbers['next']}"

    patch.setattr(messages, "new_id", new_id)
