"""The service's contract: what it publishes. Values only: no bus, no I/O, so that any other service can import it."""

from dataclasses import dataclass

from easybus import Topic


@dataclass(frozen=True, slots=True)
class Flight:
    """One flight, as it left or did not leave."""

    record: int
    """Its number in the airlines' report, from 1."""
    carrier: str
    number: int
    origin: str
    dest: str
    miles: int
    delay: int | None
    """Minutes after schedule (or before it: negative) that it departed; None: it was cancelled."""

    @property
    def route_key(self) -> str:
        """`<origin>.<carrier>.<on-time|late|cancelled>`, such as `JFK.UA.late`: what handlers choose by."""
        status = "cancelled" if self.delay is None else "late" if self.delay > 15 else "on-time"
        return f"{self.origin}.{self.carrier}.{status}"


flights = Topic("flights", Flight)
