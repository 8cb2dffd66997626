"""`easybus relay`: publish what transactions have committed, and ask about halves, without handling anything."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from ..running import Signals
from ..sending.relay import Relay
from ..shown import hidden, hide
from .loading import load_bus
from .output import Failure, guarded
from .run import log_to_stderr
from .target import AppArgument, FactoryOption, LogJsonOption

_LOGGER = logging.getLogger("easybus")
_TOLD_EVERY = 1.0


@guarded
async def relay(app: AppArgument = None, factory: FactoryOption = False, as_json: LogJsonOption = False) -> None:
    """Publish what transactions have committed, ask about what was left behind, send on what was delayed, until
    SIGTERM or SIGINT.

    Every open bus of the service does the same; this is for services whose own processes are too short-lived to, such
    as scripts and web workers. Any number may run. Nothing is handled.
    """
    bus = load_bus(app, factory=factory)
    for url in (bus.url, bus.storage_url, *bus.databases):
        hide(url or "")
    log_to_stderr(as_json=as_json)
    signals = Signals(_LOGGER)
    try:
        async with bus:
            opened = bus.opened
            engines = [engine for engine in (opened.storage, *opened.databases) if engine.outbox is not None]
            places = [hidden(engine.url) for engine in engines]
            if not places and not bus.answers:
                raise Failure(
                    f"{app} leaves nothing to relay: its storage takes no messages in transactions (within=), and "
                    "nothing answers `committed`"
                )
            _LOGGER.info("service %r: relaying %s", bus.service, ", ".join(places) or "no outbox")
            if bus.answers:
                _LOGGER.info("service %r: asking about transactions on %s", bus.service, ", ".join(sorted(bus.answers)))
            told = [_Told(place, relay) for place, relay in zip(places, opened.relays, strict=True)]
            stopped = asyncio.ensure_future(signals.wait(None))
            while not stopped.done():
                await asyncio.wait([stopped], timeout=_TOLD_EVERY)
                for each in told:
                    each.tell()
        for each in told:  # what was under way has ended
            each.tell()
    finally:
        signals.close()


class _Told:
    """What one relay has published, and how much of it was said."""

    def __init__(self, place: str, relay: Relay) -> None:
        self._place = place
        self._relay = relay
        self._said: Counter[tuple[bool, str]] = Counter()

    def tell(self) -> None:
        """One line for what is new since the last."""
        new = self._relay.published - self._said
        if new:
            self._said += new
            shares = [f"{n} to {'' if to_topic else 'queue:'}{name}" for (to_topic, name), n in sorted(new.items())]
            _LOGGER.info("published from %s: %s", self._place, ", ".join(shares))
