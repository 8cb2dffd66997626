"""The judge has teeth: every seeded fault is caught by its run, which passes without the fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from .faults import FAULTS, Fault
from .simulation import run

seeded = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.seed.__name__)


@seeded
async def test_a_seeded_fault_is_caught(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.seed(monkeypatch)
    verdict = await run(fault.make(), fault.plan, fault.engine, tmp_path)
    wrong = [one for one in verdict.wrong if not one.startswith("it took")]
    assert wrong, f"not caught: {fault.says}\n{verdict.ledger.read()}"


@seeded
async def test_without_its_fault_the_same_run_passes(fault: Fault, tmp_path: Path) -> None:
    verdict = await run(fault.make(), fault.plan, fault.engine, tmp_path)
    assert not verdict.wrong, f"{verdict.wrong}\n{verdict.ledger.read()}"
    assert set(fault.plan.deaths) <= set(verdict.deaths), "it died where it was to die"


def test_there_are_thirty_faults_and_all_known_losses_of_the_original_among_them() -> None:
    assert len(FAULTS) >= 30
    assert sum(fault.known for fault in FAULTS) == 17
    assert len({fault.says for fault in FAULTS}) == len(FAULTS)
