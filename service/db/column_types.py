"""Types of columns: times that are always UTC, and sentences that every database can store."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import DateTime, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from search_spaces.wording import SENTENCE_CHARACTERS, shortened


class UtcDateTime(TypeDecorator[datetime]):
    """A timestamp that is always aware and always UTC, on SQLite too (which forgets zones)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime was about to be stored: {value!r}; use an aware one")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Sentence(TypeDecorator[str]):
    """A reason or an event, made storable and bounded (`search_spaces.wording.shortened`).

    Its words may come from elsewhere, such as an exception or a path. Lists carry them, and they must never
    keep an end from being recorded: PostgreSQL takes no NUL character and no half of a surrogate pair.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return shortened(value, SENTENCE_CHARACTERS)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        # An older version stored it as it came.
        return None if value is None else shortened(value, SENTENCE_CHARACTERS)
