"""What all tables share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, MetaData
from sqlalchemy.orm import DeclarativeBase

from service.db.column_types import UtcDateTime


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return uuid.uuid4().hex


def next_revision(revision: int | None) -> int:
    """Higher than any that a row of this key has had, even if that row was removed: the time, in ms."""
    return max((revision or 0) + 1, time.time_ns() // 1_000_000)


def one_of(column: str, values: Iterable[StrEnum | str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        # Named, so that a later migration can drop them on either database.
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own class attribute)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
    }


NOBODY = "default"
"""The owner of what was made without a key of its own: with the server's one key, or without any."""
