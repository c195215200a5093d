"""A little data for studies of seconds: requests to paint a room, and what is to be said to each."""

from __future__ import annotations

import json

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
ROOMS = ("kitchen", "hall", "attic", "garden")


def rows(count: int, offset: int) -> str:
    """So many lines of JSON, with numbers from `offset` on, so that two sets share none."""
    found = []
    for index in range(offset, offset + count):
        colour, room = COLOURS[index % len(COLOURS)], ROOMS[index % len(ROOMS)]
        request = f"paint the {room} {colour}, number {index}"
        found.append({"prompt": request, "completion": f"{room}={colour}"})
    return "".join(json.dumps(row) + "\n" for row in found)
