"""Found when Django starts; `router` is included, and the bus's own decorators need no more."""

from __future__ import annotations

from easybus import Queue, Router

from .bus import bus, emails

router = Router()
again = router
parcels = Queue("parcels", int)


@router.handler(parcels)
def pack(number: int) -> None: ...


@emails.handler
def send(address: str) -> None: ...


assert bus.handlers
