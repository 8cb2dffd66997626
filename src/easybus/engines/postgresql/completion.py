"""The last statement of a handler's transaction: DONE, under the token, and with it the ack.

    $1 seconds that it is remembered, $2 the key's row, $3 its secret; $4 the message's row, $5 its owner

Each in two forms. One changes no row where the token is not the holder's: who runs it looks at that, and does not
commit. The other fails there, so that a COMMIT may follow it unseen. It meets the row as its last holder left it, even
one that took it over meanwhile; and a row that is gone (its claim was never on the disk when the server died) is looked
for first. A row that goes between the two was over for as long as it had to be remembered.
"""

from __future__ import annotations

NO_ROW = "easybus: rows of ours:"
"""In the error of a statement that did not do its work."""

_DONE = "starts = 0, until_at = clock_timestamp() + make_interval(secs => $1)"
_COMPLETE = (  # it may hold others up for 5 s from now on
    f"UPDATE {{key}} SET state = 2, {_DONE} WHERE id = $2 AND secret = $3 AND state = 1 "
    "RETURNING set_config('idle_in_transaction_session_timeout', '5000', true)"
)
_COMPLETE_OR_FAIL = (  # the clock is there so that no planner works the error out beforehand
    f"UPDATE {{key}} SET state = CASE WHEN secret = $3 AND state = 1 THEN 2 ELSE ('{NO_ROW} ' || id)::int END, {_DONE} "
    f"WHERE id = (SELECT coalesce((SELECT id FROM {{key}} WHERE id = $2), ('{NO_ROW} ' || clock_timestamp())::bigint))"
)
_GONE = "WITH gone AS (DELETE FROM {message} WHERE id = $4 AND owner = $5) "

COMPLETE_ONE = _COMPLETE
FINISH_ONE = _GONE + _COMPLETE
OR_FAIL = {COMPLETE_ONE: _COMPLETE_OR_FAIL, FINISH_ONE: _GONE + _COMPLETE_OR_FAIL}
"""For each its other form."""
