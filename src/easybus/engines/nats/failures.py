"""The client library's and the server's errors as ours.

What the server surely refuses for good is `Refused`; a first connection may say what is configured wrongly; whatever
else fails may be tried again.
"""

from __future__ import annotations

import ssl
from typing import Any

from ...errors import BadDelay, ConfigurationError, EasybusError, EngineError, Refused, TooLarge, Unavailable
from ..certificates import untrusted
from ..unreached import unreached

NO_STREAM = 10059
NO_CONSUMER = 10014
NO_MESSAGE = 10037
OTHER_STREAM = 10058
LEADERLESS = (10008, 10009)
"""The cluster elects a leader."""
WRONG_SEQUENCE = (10071, 10164)
FORBIDDEN = 403
"""What the server sends beside the answers, for a subject that the user may not publish to."""
_TOO_LARGE = (10054,)
_NO_SCHEDULES = (10188, 10189, 10190, 10191, 10192)
_REFUSED = {
    # code: what to do about it
    10039: "JetStream is not enabled for this account: enable it in the server's configuration",
    10052: "the server does not take what easybus declares: is it 2.12 or later?",
    10065: "another stream holds these subjects: delete it, or write ?prefix= in the URL",
    10074: "?replicas= needs a cluster of as many servers",
    FORBIDDEN: "allow the user to publish there, as docs/engines.md says, in the server's configuration",
}
_FULL = "let the consumers catch up, or raise"
_PASSES = {
    10002: f"{_FULL} the account's limits",
    10023: f"{_FULL} max_file_store in the server's configuration, or free some of its disk",
    10028: f"{_FULL} the account's limits",
    10047: f"{_FULL} max_file_store in the server's configuration, or free some of its disk",
    10077: f"{_FULL} the stream's limits",
}


class JetStreamError(Exception):
    """What the server's API answered."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.code: int = said.get("err_code", 0)
        super().__init__(f"{said.get('description', 'error')} ({self.code or said.get('code', '?')})")


def refused(error: JetStreamError, url: str) -> EngineError:
    """Our error for an answer of the server's API."""
    if error.code in _TOO_LARGE:
        return TooLarge(f"{url}: {error}")
    if error.code in _NO_SCHEDULES:
        return BadDelay(f"{url}: {error}")
    if error.code in _REFUSED:
        return Refused(f"{url}: {error}: {_REFUSED[error.code]}")
    advice = f": {_PASSES[error.code]}" if error.code in _PASSES else ""
    return Unavailable(f"{url}: {error}{advice}")


def unconnected(error: BaseException, url: str) -> EasybusError:
    """Our error for a connection that could not be made."""
    said = _text(error)
    lower = said.lower()
    if "authorization" in lower or "authentication" in lower or "user jwt" in lower:
        return ConfigurationError(
            f"{url}: the server refuses this user, password, token or credentials; mend the URL "
            "(special characters as %XX), or the server's accounts"
        )
    if "permissions violation" in lower:
        return ConfigurationError(
            f"{url}: {said}: allow the user to subscribe to _INBOX.>, in the server's configuration"
        )
    if (why := untrusted(error, "tls_ca")) is not None:
        return ConfigurationError(f"{url}: {why}")
    if isinstance(error, ssl.SSLError):
        return ConfigurationError(f"{url}: {said}: write ?tls_ca= with the authority of the server's certificate")
    if isinstance(error, UnicodeError) and not isinstance(error, UnicodeDecodeError):  # the host's, written for DNS
        return ConfigurationError(f"{url}: {said}: no host can have such a name: mend it in the URL")
    if "secure connection" in lower:
        return ConfigurationError(f"{url}: {said}: write tls:// where the server wants TLS, nats:// where it has none")
    return Unavailable(f"{url}: {said}{unreached(error)}")


def _text(error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
