"""Reading a server's `text/event-stream` as this service sends it: `id` and one line of `data`.

A message without data is a heartbeat; its id says how far the server has looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MOST_BYTES = 1 << 20
"""Of one message; none of the service's is nearly as long."""


class Message(NamedTuple):
    """`id` is None in a message that has none, such as a comment."""

    id: int | None
    data: bytes | None


def messages(chunks: Iterable[bytes]) -> Iterator[list[Message]]:
    """What each piece that arrives completes. Lines end with LF or CRLF.

    Raises:
        ValueError: it is no stream of this service's.
    """
    rest = b""
    for chunk in chunks:
        *blocks, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(rest) > MOST_BYTES:
            raise ValueError(f"a message is longer than {MOST_BYTES:,} bytes")
        if blocks:
            yield [_message(block) for block in blocks]


def _message(block: bytes) -> Message:
    fields = dict(line.partition(b":")[::2] for line in block.split(b"\n"))
    number = fields.get(b"id")
    data = fields.get(b"data")
    return Message(None if number is None else int(number), None if data is None else data.strip())
