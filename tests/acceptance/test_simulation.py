"""Every death, every pair of deaths, every failed call and lost reply: nothing is lost, nothing doubled, nothing left.

In simulation (see `simulation`): what real processes do is in `test_sigkill`.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from easybus import points

from .scenarios import (
    Chain,
    Checkback,
    Conflict,
    Dead,
    Deferred,
    Doubting,
    Fresh,
    Handle,
    Outbox,
    Outgrown,
    Poison,
    Replay,
    Retry,
    Scenario,
    Slow,
    Within,
)
from .simulation import ENGINES, Plan, Verdict, die_in, run

SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "handle": Handle,
    "handle, asking": lambda: Handle(asks=True),
    "slow": lambda: Slow(asks=True),
    "retry": Retry,
    "retry, asking": lambda: Retry(asks=True),
    "dead letter": Dead,
    "outgrown": Outgrown,
    "replay": Replay,
    "replay, asking": lambda: Replay(asks=True),
    "doubting": lambda: Doubting(asks=True),
    "conflict": Conflict,
    "fresh ids": lambda: Fresh(asks=True),
    "deferred": lambda: Deferred(asks=True),
    "check-back": Checkback,
    "check-back, asking": lambda: Checkback(asks=True),
}
SQLITE: dict[str, Callable[[], Scenario]] = {"outbox": lambda: Outbox(asks=True), "within": Within, "chain": Chain}

scenarios = pytest.mark.parametrize("name", SCENARIOS)
engines = pytest.mark.parametrize("engine", ENGINES)
databases = pytest.mark.parametrize(
    ("name", "unbroken"),
    [*((name, True) for name in SQLITE), ("outbox", False)],
    ids=[*SQLITE, "outbox, row by row"],
)


async def judged(scenario: Scenario, plan: Plan, engine: str, folder: Path | None = None) -> Verdict:
    verdict = await run(scenario, plan, engine, folder)
    assert not verdict.wrong, f"{scenario.name} on {engine} under {plan}: {verdict.wrong}\n{verdict.ledger.read()}"
    return verdict


def pairs_of_calls(total: int, number: int, seed: str) -> list[dict[int | str, str]]:
    """Two calls that go wrong, in a sample that is the same every time."""
    chance = random.Random(seed)
    return [
        {at: chance.choice(("fails", "loses")) for at in chance.sample(range(1, total + 10), 2)} for _ in range(number)
    ]


async def spread(name: str, plans: Iterable[Plan]) -> None:
    """Judge every plan, each on the next of the engines."""
    for plan, engine in zip(plans, itertools.cycle(ENGINES)):
        await judged(SCENARIOS[name](), plan, engine)


@engines
@scenarios
async def test_every_death_loses_and_doubles_nothing(name: str, engine: str) -> None:
    make = SCENARIOS[name]
    smooth = await judged(make(), Plan(), engine)
    if engine != "fused":
        assert set(make().reaches) <= set(smooth.reached), "the scenario does not get to its points"
    for point in dict.fromkeys(smooth.reached):
        alone = await judged(make(), Plan(deaths=[point]), engine)
        assert alone.deaths == [point]
        await judged(make(), Plan(deaths=[point], workers=2, stranger=True), engine)


@scenarios
async def test_every_pair_of_deaths_loses_and_doubles_nothing(name: str) -> None:
    await spread(name, [Plan(deaths=pair) for pair in itertools.product(SCENARIOS[name]().reaches, repeat=2)])


@scenarios
async def test_every_call_that_fails_and_every_lost_reply_loses_and_doubles_nothing(name: str) -> None:
    total = (await judged(SCENARIOS[name](), Plan(), "copying")).calls.total()
    singles: list[dict[int | str, str]] = [{at: how} for at in range(1, total + 1) for how in ("fails", "loses")]
    await spread(name, [Plan(calls=calls) for calls in (*singles, *pairs_of_calls(total, 40, name))])


@engines
@scenarios
async def test_a_process_that_stalls_past_its_leases_loses_nothing(name: str, engine: str) -> None:
    make = SCENARIOS[name]
    for point in dict.fromkeys((await judged(make(), Plan(), engine)).reached):
        verdict = await run(make(), Plan(stalls={point: 25.0}, workers=2), engine)
        wrong = [one for one in verdict.wrong if "effects" not in one]  # what lands after the taker asked may double
        assert not wrong, f"{name} on {engine}, stalled at {point}: {wrong}\n{verdict.ledger.read()}"


@databases
@pytest.mark.timeout(240)
async def test_every_death_and_every_pair_of_deaths_keeps_a_databases_promise(
    name: str, unbroken: bool, tmp_path: Path
) -> None:
    make = SQLITE[name]
    fresh = (tmp_path / f"{number}" for number in itertools.count())

    async def one(plan: Plan) -> Verdict:
        (folder := next(fresh)).mkdir()
        return await judged(make(), dataclasses.replace(plan, unbroken=unbroken), "sqlite", folder)

    smooth = await one(Plan())
    for first in dict.fromkeys(smooth.reached):
        alone = await one(Plan(deaths=[first]))
        assert alone.deaths == [first]
        for second in dict.fromkeys(alone.reached):
            await one(Plan(deaths=[first, second]))


@databases
@pytest.mark.timeout(240)
async def test_every_call_that_fails_and_every_lost_reply_keeps_a_databases_promise(
    name: str, unbroken: bool, tmp_path: Path
) -> None:
    make = SQLITE[name]
    fresh = (tmp_path / f"{number}" for number in itertools.count())

    async def one(plan: Plan) -> Verdict:
        (folder := next(fresh)).mkdir()
        return await judged(make(), dataclasses.replace(plan, unbroken=unbroken), "sqlite", folder)

    total = (await one(Plan())).calls.total()
    for at, fault in itertools.product(range(1, total + 1), ("fails", "loses")):
        await one(Plan(calls={at: fault}))
    for calls in pairs_of_calls(total, 20, name):
        await one(Plan(calls=calls))


@engines
@pytest.mark.parametrize("at_once", [False, True], ids=["later", "at once"])
async def test_a_message_that_kills_its_processes_is_a_dead_letter_and_its_neighbours_are_handled(
    engine: str, at_once: bool
) -> None:
    await judged(Poison(die_in, at_once=at_once), Plan(), engine)


@engines
async def test_a_clean_stop_redelivers_nothing_that_was_in_flight(engine: str) -> None:
    scenario = Slow()
    verdict = await judged(scenario, Plan(stop_after=5.0), engine)
    assert verdict.ledger.all("began") == ["a", "b"], "each began once"


@scenarios
async def test_a_clean_stop_at_any_time_loses_and_doubles_nothing(name: str) -> None:
    times, graces = (0.0, 2.0, 4.0, 6.0, 12.0, 26.0), itertools.cycle((None, 0.0, 1.0))
    await spread(name, [Plan(stop_after=at, grace=grace) for at, grace in zip(times, graces, strict=False)])


def test_the_scenarios_get_to_every_point() -> None:
    every = {point for make in (*SCENARIOS.values(), *SQLITE.values()) for point in make().reaches}
    assert every == set(points.POINTS)


@pytest.mark.long
@engines
@scenarios
@pytest.mark.timeout(0)
async def test_every_pair_of_deaths_on_every_engine(name: str, engine: str) -> None:
    make = SCENARIOS[name]
    for pair in itertools.product((await judged(make(), Plan(), engine)).reached, repeat=2):
        await judged(make(), Plan(deaths=pair), engine)


@pytest.mark.long
@engines
@scenarios
@pytest.mark.timeout(0)
async def test_every_pair_of_failed_calls_and_lost_replies_loses_and_doubles_nothing(name: str, engine: str) -> None:
    make = SCENARIOS[name]
    total = (await judged(make(), Plan(), engine)).calls.total() + 10
    for first, second in itertools.combinations(range(1, total), 2):
        for faults in itertools.product(("fails", "loses"), repeat=2):
            await judged(make(), Plan(calls=dict(zip((first, second), faults, strict=True))), engine)


@pytest.mark.long
@engines
@scenarios
@pytest.mark.timeout(0)
async def test_every_death_with_every_failed_call_and_lost_reply_loses_and_doubles_nothing(
    name: str, engine: str
) -> None:
    make = SCENARIOS[name]
    smooth = await judged(make(), Plan(), engine)
    for point in dict.fromkeys(smooth.reached):
        for at, fault in itertools.product(range(1, smooth.calls.total() + 10), ("fails", "loses")):
            await judged(make(), Plan(deaths=[point], calls={at: fault}), engine)
