"""What the services tell each other."""

from dataclasses import dataclass

from easybus import Topic


@dataclass
class TransferRequested:
    """A teller has accepted it."""

    number: int
    payer: int
    payee: int
    cents: int


@dataclass
class TransferBooked:
    """Both accounts have been changed."""

    number: int
    payer: int
    payee: int
    cents: int


requested = Topic("transfers.requested", TransferRequested)
booked = Topic("transfers.booked", TransferBooked)
