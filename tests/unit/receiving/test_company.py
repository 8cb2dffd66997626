"""Who runs beside others, who alone, and what a cancelled one leaves behind."""

from __future__ import annotations

import asyncio

from easybus.receiving.hand import Company


async def test_who_is_cancelled_while_its_turn_to_run_alone_comes_holds_nobody_up() -> None:
    company = Company()
    await company.enter()
    gone, next_alone = (asyncio.create_task(company.enter_alone(who)) for who in ("gone", "next"))
    beside = asyncio.create_task(company.enter())
    await asyncio.sleep(0)
    gone.cancel()
    company.leave()  # before the cancelled one has run again
    await next_alone
    assert gone.cancelled()
    assert company.alone == "next"
    assert not beside.done()
    company.leave_alone()
    await beside


async def test_the_last_that_waited_to_run_alone_lets_the_others_in_when_it_is_cancelled() -> None:
    company = Company()
    await company.enter()
    gone = asyncio.create_task(company.enter_alone("gone"))
    beside = asyncio.create_task(company.enter())
    await asyncio.sleep(0)
    gone.cancel()
    company.leave()
    await beside
    assert company.open
