"""Which settings of the server weaken "confirmed is kept"."""

from __future__ import annotations

from .link import Link

_SETTINGS = "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.log_bin, @@GLOBAL.sync_binlog"


async def weaknesses(link: Link) -> list[str]:
    """A sentence for each."""
    ((flush, logs, synced),) = (await link.one(_SETTINGS)).rows
    found: list[str] = []
    if int(flush) != 1:
        found.append(
            f"innodb_flush_log_at_trx_commit is {flush}: a crash of the server or its host may undo what was confirmed "
            "in the second before it; set it to 1"
        )
    if int(logs) and int(synced) != 1:
        found.append(
            f"sync_binlog is {synced}: a crash of the server's host may undo what was confirmed shortly before, there "
            "or on replicas; set it to 1"
        )
    return found
