"""A row's values as JSON, and back, by the types of its columns."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Boolean, Column, DateTime, Float, Integer, String
from sqlalchemy.types import TypeDecorator, TypeEngine

_LARGEST_INTEGER = 2**63 - 1
_NOT_FINITE = {"inf", "-inf", "nan"}


def encode(value: Any) -> Any:
    """What JSON can hold of a value, without loss."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def decode(column: Column[Any], value: Any) -> Any:
    """The value that `encode` was given.

    Raises:
        ValueError: it is none of the column's type.
    """
    kind = _plain(column.type)
    if value is None:
        if not column.nullable:
            raise ValueError(f"{column.name} must not be null")
        return None
    if isinstance(kind, JSON):
        return value
    if isinstance(kind, DateTime) and isinstance(value, str):
        at = datetime.fromisoformat(value)
        if (at.tzinfo is not None) == kind.timezone:
            return at
    elif isinstance(kind, Boolean) and isinstance(value, bool):
        return value
    elif isinstance(kind, Integer) and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= _LARGEST_INTEGER:
            return value
    elif isinstance(kind, Float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        if not isinstance(value, str) or value in _NOT_FINITE:
            return float(value)
    elif isinstance(kind, String) and isinstance(value, str):  # enumerations, too
        return value
    raise ValueError(
        f"{column.name} has a value that is not of type {type(kind).__name__.lower()}: {str(value)[:80]!r}"
    )


def _plain(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    return kind.impl_instance if isinstance(kind, TypeDecorator) else kind
