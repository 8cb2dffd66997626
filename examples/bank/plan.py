"""Who pays whom how much: made from a seed, so that whoever knows it can say what every account must hold."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

ACCOUNTS = 1000
BALANCE = 100_000
"""Cents in each account at the start."""
WITHDRAWN_EVERY = 20
"""Before each such transfer another is begun, and taken back."""


class Transfer(NamedTuple):
    """One transfer, and the teller who accepts it."""

    number: int
    teller: int
    payer: int
    payee: int
    cents: int


def planned(number: int, seed: int, tellers: int) -> Transfer:
    """The transfer with this number; one below 0 is of those that are taken back."""
    chance = random.Random(f"{seed}/{number}")
    payer, payee = chance.sample(range(1, ACCOUNTS + 1), 2)
    return Transfer(number, abs(number) % tellers + 1, payer, payee, chance.randint(1, 50_000))


def share(teller: int, tellers: int, after: int, transfers: int) -> Iterator[int]:
    """The numbers of a teller's transfers behind `after`."""
    return (number for number in range(after + 1, transfers + 1) if number % tellers + 1 == teller)


def balances(transfers: int, seed: int) -> Counter[int]:
    """What every account must hold when all are booked. Knows nothing of messages, handlers, or databases."""
    cents: Counter[int] = Counter(dict.fromkeys(range(1, ACCOUNTS + 1), BALANCE))
    for number in range(1, transfers + 1):
        transfer = planned(number, seed, 1)
        cents[transfer.payer] -= transfer.cents
        cents[transfer.payee] += transfer.cents
    return cents
