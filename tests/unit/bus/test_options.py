"""What a send may be told."""

from __future__ import annotations

import pytest

from easybus import Bus


async def test_a_misspelt_option_of_a_send_is_an_error_and_nothing_is_sent():
    bus = Bus("memory://")
    numbers = bus.queue("numbers", int)
    async with bus:
        with pytest.raises(TypeError, match="dealy"):
            await numbers.send(1, dealy=60)  # type: ignore[call-arg]
        await numbers.send(2, id="two", headers={"a": "b"}, delay=None)
        stats = await bus.driver.stats("numbers")
    assert stats.ready == 1
