"""`easybus relay`: publish what transactions have committed, and ask about halves, without handling anything."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

from ..running import Signals
from ..sending.relay import Relay
from .loading import load_bus
from .output import Failure, guarded, hidden, hide
from .run import log_to_stderr
from .target import AppArgument, FactoryOption

_LOGGER = logging.getLogger("easybus")
_TOLD_EVERY = 1.0


@guarded
async def relay(app: AppArgument = None, factory: FactoryOption = False) -> None:
    """Publish what transactions have committed, ask about what was left behind, send on what was delayed, until
    SIGTERM or SIGINT.

    Every open bus of the service does the same; this is for services whose own processes are too short-lived to, such
    as scripts and web workers. Any number may run. Nothing is handled.
    """
    bus = load_bus(app, factory=factory)
    hide(bus.url)
    log_to_stderr()
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
            telling = asyncio.create_task(_tell(dict(zip(places, opened.relays, strict=True))))
            try:
                await signals.wait(None)
            finally:
                telling.cancel()
    finally:
        signals.close()


async def _tell(relays: Mapping[str, Relay]) -> None:
    told: dict[str, Counter[tuple[bool, str]]] = {place: Counter() for place in relays}
    while True:
        for place, each in relays.items():
            new = each.published - told[place]
            told[place] += new
            if new:
                shares = [f"{n} to {'' if to_topic else 'queue:'}{name}" for (to_topic, name), n in sorted(new.items())]
                _LOGGER.info("published from %s: %s", place, ", ".join(shares))
        await asyncio.sleep(_TOLD_EVERY)
