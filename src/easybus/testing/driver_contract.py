"""What every driver passes: to be subclassed, with the fixture `engine` overridden by an open engine of yours.

    class TestMine(DriverContract):
        @pytest.fixture
        async def engine(self):
            engine = create("mine://localhost", SystemClock())
            await engine.open()
            yield engine
            await engine.close()

Tests are chosen by the driver's `Capabilities`, never by its name; what is left out is a skip that says why. The
fixtures `reopen`, `restart` and `pass_time` may be overridden too (see `driver_base.DriverBase`). It runs on pytest
with pytest-asyncio, and each part may be subclassed alone.
"""

from __future__ import annotations

from .driver_base import DriverBase
from .driver_faults import DriverFaults, DriverFused
from .driver_leases import DriverLeases
from .driver_messages import DriverMessages
from .driver_topology import DriverTopology

__all__ = [
    "DriverBase",
    "DriverContract",
    "DriverFaults",
    "DriverFused",
    "DriverLeases",
    "DriverMessages",
    "DriverTopology",
]


class DriverContract(DriverMessages, DriverTopology, DriverLeases, DriverFaults, DriverFused):
    """All of it."""
