"""Columns of a data file: by name, or by position where the file has no names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import problems, shown

MAX_COLUMNS = 10_000
_POSITION = re.compile(r"\d{1,4}", re.ASCII)


def read_columns(raw: Any, *, positions: bool) -> Any:
    """Field -> column, with positions as the text of a whole number from 0.

    Whatever is neither a name nor a position is left as it is, for the model to refuse.

    Args:
        raw: As submitted or stored.
        positions: Whether columns have positions in place of names.

    Raises:
        PydanticCustomError: A position where a name must be, or the other way round.
    """
    if not isinstance(raw, Mapping):
        return raw
    read, faults = dict(raw), []
    for field, column in raw.items():
        number = isinstance(column, int) and not isinstance(column, bool)
        if not positions:
            if number:
                message = "must be the column's name, as text; only data.header: none has positions"
                faults.append(Fault(path=str(field), value=shown(column), message=message, allowed="a name"))
        elif (number and 0 <= column < MAX_COLUMNS) or _is_position(column):
            read[field] = str(int(column))
        else:
            message = "must be the column's position, counted from 0, because data.header is none"
            allowed = f"a whole number from 0 to {MAX_COLUMNS - 1}"
            faults.append(Fault(path=str(field), value=shown(column), message=message, allowed=allowed))
    if faults:
        raise problems(*faults)
    return read


def _is_position(column: Any) -> bool:
    return isinstance(column, str) and _POSITION.fullmatch(column) is not None
