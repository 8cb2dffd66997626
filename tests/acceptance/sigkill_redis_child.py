"""`sigkill_child.py` on Redis: its server's URL is in the environment, and each folder has a prefix of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import sigkill_child
from scenarios import FileLedger, Setting


def setting(folder: Path, apart: bool) -> Setting:
    """Apart: messages under one prefix, keys, letters and halves under another, as on two servers."""
    url = f"{os.environ['REDIS_URL']}?prefix={folder.parent.name}-{folder.name}"
    return Setting(
        url,
        FileLedger(folder / "ledger"),
        asyncio.sleep,
        time.time,
        storage=f"{url}-storage" if apart else None,
        second=sigkill_child.SECOND,
        name=str(os.getpid()),
    )


if __name__ == "__main__":
    sigkill_child.short_leases()
    sigkill_child.setting = setting
    scenario = sigkill_child.SCENARIOS[sys.argv[2]]()
    sys.exit(asyncio.run(sigkill_child.main(Path(sys.argv[1]), scenario, sys.argv[3] == "apart", sys.argv[4])))
