"""What an operator does with dead letters: look at them, mend what is wrong in them, and have them replayed.

`easybus dead list`, `edit` and `replay` do the same by hand.
"""

import json

from rich.console import Console
from rich.table import Table

from easybus import Bus, Message


async def mend_and_replay(bus: Bus, console: Console) -> int:
    """Mend every dead letter and send it back to its queue; returns how many there were."""
    assert bus.dead_letters is not None
    letters = await bus.dead_letters.find(limit=1000)
    if not letters:
        return 0
    table = Table("queue", "route key", "miles", "why it is here", title=f"{len(letters)} dead letters, to be mended")
    for letter in letters:
        message = Message.from_bytes(letter.body)
        table.add_row(letter.queue, message.route_key, repr(json.loads(message.payload)["miles"]), letter.reason)
    console.print(table)
    for letter in letters:
        key: str | None = letter.key
        message = Message.from_bytes(letter.body)
        mended = mend(message)
        if mended != message:
            key = await bus.dead_letters.edit(letter.queue, letter.key, mended.to_bytes())
        if key is not None:
            await bus.dead_letters.mark_for_retry(letter.queue, [key])
    return len(letters)


def mend(message: Message) -> Message:
    """The message with a distance that is a number; as it is, if nothing is wrong with it.

    Another payload needs another id: the old one stands for the old payload. A header tells where it came from.
    """
    payload = json.loads(message.payload)
    if not isinstance(payload["miles"], str):
        return message
    payload["miles"] = int(payload["miles"].removesuffix(" mi"))
    return Message.new(payload, route_key=message.route_key, headers={**message.headers, "mended-from": message.id})
