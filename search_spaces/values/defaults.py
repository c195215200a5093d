"""Keys that a stored document has only where they differ from their default."""

from __future__ import annotations

from functools import partial
from operator import eq
from typing import Any

from pydantic import Field


def unsaid_if(default: Any) -> Any:
    """Marks a key (`Annotated[..., unsaid_if(default)]`) that is left out of what is stored at this value.

    For keys that came later: what an earlier version has stored, and what was made of it (a checkpoint's key,
    a comparison of two studies), stays the same to the letter.
    """
    return Field(exclude_if=partial(eq, default))
