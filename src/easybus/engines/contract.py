"""What an engine is: a driver, and up to four storages. The core knows engines only by this file.

Every call is made from one event loop; several may be under way at once. A call that is cancelled may or may not have
happened. Errors are those of `errors.EngineError`, the client library's own chained: `Unavailable` when trying again
may help, `Refused` when it does not. Times are seconds; an engine that has a clock uses that, never the caller's.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

# ---------------------------------------------------------------------------------------------------------- topology


@dataclass(frozen=True, slots=True)
class DeclareQueue:
    """There is a queue of this name; a send without a delay of its own waits `delay` seconds in it."""

    name: str
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class DeclareTopic:
    """There is a topic of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of `topic` whose route key matches `route_key` go to `queue` too."""

    topic: str
    queue: str
    route_key: str = "#"


Change: TypeAlias = DeclareQueue | DeclareTopic | Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine gives, as data, fixed once it is open. Tests and the core select by this, never by a name."""

    engine: str
    durable: bool
    """A confirmed publish outlives a killed process."""
    shared: bool
    """Other processes see it."""
    max_body: int
    """The largest message, in bytes."""
    max_name: int
    """The longest queue or topic name, in bytes of UTF-8."""
    max_delay: float = 366 * 86_400.0
    """The longest delay, in seconds."""
    delays_topics: bool = False
    """A delayed topic send waits in the engine; else the core lets it wait in a queue of its own."""
    atomic_move: bool = False
    """`Move` is one step; else it is a confirmed publish, then an ack: at worst a copy."""
    fenced: bool = False
    """A late ack settles nothing that was delivered to another."""
    ordered: bool = False
    """One consumer sees a queue in the order of publishing; a batch is published in its order."""
    unbroken: bool = False
    """Of a batch that could not be published, what is there all the same has all that came before it there too; and an
    item that is `behind` another is not published without that one."""
    counts: bool = False
    """`stats` is exact."""
    counts_routes: bool = False
    """`publish` says 0 of a topic send that reached no queue (and where it can, how many else), so `require=True` is
    possible."""
    lists_queues: bool = False
    """`queues` works."""
    looks_ahead: bool = False
    """The driver itself fetches ahead for who handles quickly; else the core does."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Messages of a queue: exact, or None where the engine cannot say."""

    ready: int | None
    in_flight: int | None
    delayed: int | None


# ------------------------------------------------------------------------------------------------------- the driver


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One message on its way to a topic or a queue."""

    # `gc=False`, here and below, on what can be part of no cycle: the collector walks a tenth of the time less.

    to_topic: bool
    name: str
    body: bytes
    route_key: str = ""
    delay: float | None = None
    """Seconds until it may be seen; None: the queue's default."""
    dedupe_id: str = ""
    """What a broker's own duplicate filter may go by; empty: nothing."""
    require: bool = False
    """A topic send that reaches no queue fails with `Unroutable` instead of being kept nowhere."""
    behind: bool = False
    """Not without the item before it in the batch: where that one is refused, so is this. For `unbroken` engines."""


def held_up(item: Publication, before: object) -> bool:
    """Whether an item is not to be published, `before` being the result of the one before it."""
    return item.behind and isinstance(before, Exception)


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message in a consumer's hands, until it is settled or its lease ends."""

    queue: str
    body: bytes
    attempt: int
    """1 for the first delivery; as exact as the engine can."""
    receipt: Any
    """The engine's own; it never refers to the delivery."""


class Ack(msgspec.Struct, frozen=True):
    """Done: gone from the queue."""

    delivery: Delivery


class Nack(msgspec.Struct, frozen=True):
    """Back into the queue, to be seen in `delay` seconds."""

    delivery: Delivery
    delay: float = 0.0


class Extend(msgspec.Struct, frozen=True):
    """Still at work: the lease now ends `lease` seconds from now."""

    delivery: Delivery
    lease: float


class Move(msgspec.Struct, frozen=True):
    """A retry: these new bytes into the same queue after `delay`, and the delivery gone."""

    delivery: Delivery
    body: bytes
    delay: float
    dedupe_id: str = ""


Settlement: TypeAlias = Ack | Nack | Extend | Move


class Settled(enum.Enum):
    """What became of a settlement."""

    DONE = "done"
    STALE = "stale"
    """The delivery was no longer the caller's; nothing was changed."""
    UNKNOWN = "unknown"
    """It may have happened; the lease will tell."""


class Driver(Protocol):
    """Queues and topics of one engine."""

    caps: Capabilities

    async def declare(self, changes: Sequence[Change]) -> None:
        """Make these exist; idempotent, never empties. A binding's queue and topic must exist or be declared with it.

        Raises: `DeclaredOtherwise` (a queue with another delay), `BadName`, `NotDeclared`.
        """
        ...

    async def drop(self, changes: Sequence[Change]) -> None:
        """Make these not exist; what is not there is left so. A queue goes with its messages and bindings."""
        ...

    async def publish(self, batch: Sequence[Publication]) -> list[int | Exception | None]:
        """Publish; what returns is confirmed, as durable as the engine is configured to be.
        Returns, for each: the number of queues reached (None where the engine cannot know), or why it failed. Bindings
        are read as they are now. A raised error means that any of them may or may not be there.
        """
        ...

    async def fetch(self, queue: str, limit: int, wait: float, lease: float) -> list[Delivery]:
        """Up to `limit` messages that are due, as soon as there is one, or none after `wait` seconds.
        Each is the caller's until settled, or until `lease` seconds have passed. Raises `NotDeclared`.
        Cancelling ends it within a second, and what it had taken goes back by its lease at the latest.
        """
        ...

    async def settle(self, queue: str, batch: Sequence[Settlement]) -> list[Settled]:
        """Carry these out, each under the delivery's fence where the engine has one."""
        ...

    async def stats(self, queue: str) -> QueueStats:
        """Count the queue's messages. Raises `NotDeclared`."""
        ...

    async def purge(self, queue: str) -> int:
        """Remove every message that is not in flight; returns how many. Raises `NotDeclared`.
        Where `counts` is not given, what a send's own delay holds back may stay.
        """
        ...

    async def queues(self) -> list[DeclareQueue]:
        """All queues, by name. Raises `NotSupported` where the engine cannot list."""
        ...

    async def topics(self) -> list[tuple[str, list[Binding]]]:
        """All topics by name, each with its bindings. Raises `NotSupported` where the engine cannot list."""
        ...


# ---------------------------------------------------------------------------------------------------- handling once


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A wish to handle (queue, id) alone, for `lease` seconds; 0: a start is counted, and free again at once."""

    queue: str
    id: str
    digest: bytes
    lease: float
    replay: str = ""
    """The fence of the dead letter this copy was replayed from: a new one counts starts anew."""
    lazy: bool = False
    """The server need not have this claim on its disk before it answers, where it keeps the order of commits: who holds
    it completes it in a transaction of this server, under its token, which is void where the claim was forgotten."""
    keep: float = 0.0
    """How long its completion is likely to be remembered: a hint for the purge, which need not look at it before."""


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """The key is ours under this token."""

    token: str
    before: bool
    """It was claimed before: a retry, a replay, a takeover."""
    starts: int
    """Claims since the last outcome, this one included."""


class Busy(msgspec.Struct, frozen=True, gc=False):
    """Another holds it."""


class Done(msgspec.Struct, frozen=True, gc=False):
    """It was handled."""


class Conflict(msgspec.Struct, frozen=True, gc=False):
    """The id was used for another payload."""


ClaimResult: TypeAlias = Claimed | Busy | Done | Conflict


class IdempotencyStorage(Protocol):
    """Keys, so that a message is not handled twice.

        FREE → CLAIMED(token, lease) → DONE(expires)     failure: CLAIMED → FREE, which remembers that it was claimed
        CLAIMED past its lease → CLAIMED by the next taker, with a new token
    The digest is compared first, in every state. Tokens are fresh and random. All calls take batches, and one item's
    result never hangs on another's, but in a batch the second claim of a key is `Busy`.
    """

    async def claim(self, batch: Sequence[Claim]) -> list[ClaimResult]:
        """Claim keys, each counted as a start. As durable as a publish."""
        ...

    async def renew(self, tokens: Sequence[str], lease: float) -> list[bool]:
        """The leases end `lease` seconds from now; False where the key is no longer held under the token."""
        ...

    async def complete(self, batch: Sequence[tuple[str, float]]) -> list[bool]:
        """(token, keep): CLAIMED → DONE, remembered for `keep` seconds. False: nothing changed, the token is not
        the holder's. As durable as a publish."""
        ...

    async def release(self, tokens: Sequence[str]) -> list[bool]:
        """CLAIMED → FREE, its starts back to 0. False: nothing changed."""
        ...

    async def lookup(self, queue: str, id: str) -> str:
        """`free`, `claimed` (a live lease) or `done`: read again after a refused completion."""
        ...

    def completion(self, token: str, keep: float) -> tuple[str, tuple[Any, ...]]:
        """The statement that completes under the token on a caller's connection to this database: it must change one
        row, else the token is not the holder's. Raises `NotSupported` where the storage is no database."""
        ...

    async def purge(self, limit: int = 1000) -> int:
        """Forget up to `limit` keys that are DONE and expired, or FREE and a day old; returns how many."""
        ...


@runtime_checkable
class ForgettingStorage(Protocol):
    """An idempotency storage that outlives a test: for those that share a database, one after the other."""

    async def forget(self) -> None:
        """Forget every key, in whatever state: what was handled would be handled again."""


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A delivery fetched and claimed in one step."""

    delivery: Delivery
    parsed: Any
    """What `parse` returned beside the claim."""
    claim: ClaimResult | None
    """None: `parse` gave no claim for it."""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """A handled message: complete under the token, then ack, in one step."""

    delivery: Delivery
    token: str
    keep: float


@runtime_checkable
class FusedDriver(Protocol):
    """A driver whose engine holds the keys too: fetch with claim, and completion with ack, in one step each."""

    async def take(
        self,
        queue: str,
        limit: int,
        wait: float,
        lease: float,
        parse: Callable[[Delivery], tuple[Claim | None, Any]],
    ) -> list[Taken]:
        """As `fetch`, and each delivery's key claimed in the same step. `parse` never raises; it may be called off
        the event loop's thread."""
        ...

    async def finish(self, queue: str, batch: Sequence[Finish]) -> list[bool]:
        """Complete and ack. False: the token is not the holder's; neither was done."""
        ...


@runtime_checkable
class FinishingDriver(Protocol):
    """A fused driver whose messages lie in the database of handlers' transactions."""

    def finishing(self, item: Finish) -> tuple[str, tuple[Any, ...]]:
        """As `IdempotencyStorage.completion`, and the delivery is acked in the same statement. Not for a delivery
        that was extended: a transaction that sees one state of the database could not change it any more."""
        ...


# ----------------------------------------------------------------------------------------------------- dead letters


class DeadLetter(msgspec.Struct, kw_only=True):
    """A message that could not be handled, and why. Kept until an operator or its replay's success removes it."""

    queue: str
    key: str = ""
    """What addresses it in its queue; made by the storage from the id and the bytes."""
    message_id: str = ""
    body: bytes
    reason: str
    error_type: str = ""
    error: str = ""
    traceback: str = ""
    attempts: int = 0
    first_failed: float = 0.0
    last_failed: float = 0.0
    history: list[dict[str, Any]] = msgspec.field(default_factory=list[dict[str, Any]])
    """What happened to it: stored again, marked, replayed; each with `at` and `what`."""
    fence: str = ""
    marked: bool = False


class DeadLetterStorage(Protocol):
    """Dead letters, by queue and key: the id with the payload's digest, or SHA-256 of the bytes without an id.

    Every claim and store gives the row a new fence, from a sequence that never restarts. As durable as a publish.
    """

    async def store(self, letter: DeadLetter) -> str:
        """Keep a letter; returns its key. A row that stands keeps its first failure, clears its mark, voids its
        claim, and adds to its history."""
        ...

    async def fetch(self, queue: str, limit: int, lease: float) -> list[DeadLetter]:
        """Letters marked for retry, claimed for `lease` seconds, each with a new fence."""
        ...

    async def remove(self, queue: str, key: str, fence: str) -> bool:
        """Remove what was fetched; an older fence changes nothing."""
        ...

    async def find(
        self, queue: str | None = None, *, reason: str | None = None, before: float | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        """Letters, oldest failure first; `reason`: a part of the reason or error type; `before`: unix seconds that
        the last failure is older than."""
        ...

    async def get(self, queue: str, key: str) -> DeadLetter | None:
        """One letter, by its key, or by its message id where that names just one."""
        ...

    async def edit(self, queue: str, key: str, body: bytes) -> str | None:
        """Replace the bytes, keeping why it failed; returns the new key, or None if it is not there."""
        ...

    async def mark_for_retry(self, queue: str, keys: Sequence[str]) -> int:
        """Mark letters; returns how many were there. The queue's handlers replay them."""
        ...

    async def delete(self, queue: str, keys: Sequence[str]) -> int:
        """Delete letters; returns how many were there. Touches no idempotency key."""
        ...

    async def count(self) -> dict[str, int]:
        """Letters by queue."""
        ...


# ------------------------------------------------------------------------------------------------------ transactions


class Half(msgspec.Struct, kw_only=True):
    """A message stored before its local work: published, or asked about."""

    id: str
    service: str
    topic: str
    body: bytes
    token: str = ""
    due: float = 0.0
    checks: int = 0
    parked: bool = False
    created: float = 0.0
    error: str = ""


class TransactionStorage(Protocol):
    """Halves. One changes only by (id, token): storing, extending and claiming each write a fresh token."""

    async def store(self, half: Half, due_in: float) -> tuple[str, bool]:
        """Store, or take over what stands under the id (its body and due time become these; its checks stay).
        Returns the fresh token and whether it stood before. As durable as a publish."""
        ...

    async def remove(self, id: str, token: str) -> bool:
        """Remove it; False: the token is not the last."""
        ...

    async def postpone(
        self, id: str, token: str, delay: float, *, checked: bool, parked: bool, error: str = ""
    ) -> bool:
        """To be asked again in `delay` seconds; `checked` counts one more unanswered check."""
        ...

    async def claim_due(self, scopes: Sequence[tuple[str, str]], limit: int, lease: float) -> list[Half]:
        """Halves of these (service, topic) that are due, oldest first, each with a fresh token, due again after
        `lease` seconds."""
        ...

    async def claim(self, id: str, lease: float) -> Half | None:
        """One half by id, due or not, with a fresh token: for operators."""
        ...

    async def fetch(self, id: str) -> Half | None:
        """Look at one."""
        ...

    async def find(self, service: str | None = None, limit: int = 100) -> list[Half]:
        """Halves, oldest first."""
        ...


class OutboxRow(msgspec.Struct, kw_only=True):
    """One message that a caller's transaction committed."""

    id: str
    transaction: str
    position: int
    publication: Publication
    token: str = ""
    failures: int = 0
    error: str = ""
    created: float = 0.0


class OutboxStorage(Protocol):
    """Rows written in callers' transactions. Relays scan it and never keep a cursor: a lower id may commit later."""

    def statements(self, service: str, batch: Sequence[Publication]) -> list[tuple[str, tuple[Any, ...]]]:
        """The statements that write these rows as one transaction's next ones, to be run on the caller's connection."""
        ...

    def identity(self) -> tuple[str, str]:
        """A statement and the value that it returns on a connection to this very database, and on no other."""
        ...

    async def claim(self, service: str, limit: int, lease: float) -> list[OutboxRow]:
        """Committed rows, whole transactions only: those whose remaining rows are all free and due, under one fresh
        token. Ordered by transaction and position."""
        ...

    async def delete(self, rows: Sequence[tuple[str, str]]) -> int:
        """(id, token) of rows that are published and confirmed; returns how many were there."""
        ...

    async def release(self, transaction: str, token: str, delay: float, error: str = "") -> None:
        """Give a transaction's remaining rows back, due in `delay` seconds; with an error it counts as a failure."""
        ...

    async def park(self, transaction: str, token: str, error: str) -> None:
        """Refused for good: kept, shown to operators, never claimed until `unpark`."""
        ...

    async def unpark(self, transaction: str) -> bool:
        """Due again, now."""
        ...

    async def find(self, service: str | None = None, *, parked: bool = False, limit: int = 100) -> list[OutboxRow]:
        """Rows that are not published yet; `parked`: only those refused for good."""
        ...

    async def wait(self, seconds: float) -> None:
        """Return when rows may have been committed, here or in another process, after `seconds` at the latest."""
        ...


# ----------------------------------------------------------------------------------------------------- an engine


@runtime_checkable
class Engine(Protocol):
    """One URL: a driver, and the storages that it offers (None: it has no such storage)."""

    url: str
    """As it may be shown: without a password."""
    driver: Driver | None
    idempotency: IdempotencyStorage | None
    dead_letters: DeadLetterStorage | None
    transactions: TransactionStorage | None
    outbox: OutboxStorage | None

    def transaction(self, kind: type[Any], lease: float = math.inf) -> AbstractAsyncContextManager[Any] | None:
        """A transaction of this engine's database as an object of `kind`, for `within=kind`; None: it has none such.

        `lease`: seconds after which one that does nothing is ended by a server that can: whoever holds it stands still,
        and its locks would hold up its successor. Entering begins, leaving without an error commits (an error out of
        leaving: it may or may not be committed), leaving with one rolls back.
        """
        ...

    async def open(self) -> None:
        """Connect. Raises `Unavailable`, `Refused`, `ConfigurationError`. Opening again after `close` works."""
        ...

    async def close(self) -> None:
        """Disconnect. Confirmed work stays; twice is a no-op."""
        ...


@runtime_checkable
class ExclusiveEngine(Protocol):
    """An engine whose own writes wait for the end of an open `transaction`, as where a file has one writer."""

    @property
    def inside_transaction(self) -> bool:
        """Whether the running code lies inside such a transaction, its threads and tasks included: a plain send there
        would wait for itself, so the bus refuses it."""
        ...


@runtime_checkable
class CommittingEngine(Protocol):
    """An engine whose last statements of handlers' transactions can be run together with their COMMIT, unseen."""

    def failing(self, statement: str) -> str:
        """For a statement of `completion` or `finishing`: the same, but where that would change no row it fails."""
        ...


class Known(str):
    """A sentence of `AuditedEngine.durability` that the URL accepts, or no client can read: no contradiction."""


@runtime_checkable
class AuditedEngine(Protocol):
    """An engine that can read which settings of its server, or of where its data lies, weaken "confirmed is kept"."""

    async def durability(self) -> list[str]:
        """A sentence for each: what it is, what may be lost, what to set instead. Empty: nothing is known against it.
        Shown behind the engine's URL, `Known` ones as notes.
        The engine is open. Raises `EngineError` where it cannot be asked.
        """
        ...


@runtime_checkable
class SchemaEngine(Protocol):
    """An engine that keeps its data in tables, which somebody else may make."""

    def schema(self, since: int = 0) -> str:
        """The statements that bring tables of version `since` (0: none) to what `open` asks for, with the schema and
        prefix of the URL. Each ends with `;` at the end of a line, and nothing else does. The engine need not be open.
        Raises `ConfigurationError`: there is no such version.
        """
        ...

    def schema_version(self) -> str:
        """A statement that returns the version of the tables that there are; it fails, or returns no row, where there
        are none. The engine need not be open."""
        ...
