"""Rows of keys as they are shown."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from service.access.keys import queries
from service.access.keys.commands import NewKey
from service.access.keys.schemas import KeyView, NewKeyView
from service.db.database import database_now
from service.db.models import ApiKey


def view(row: ApiKey, now: datetime) -> KeyView:
    """A key by now, by the database's clock."""
    fields = {name: getattr(row, name) for name in KeyView.model_fields if name != "state"}
    return KeyView(**fields, state=queries.state_of(row, now))


def new_key_view(session: Session, made: NewKey) -> NewKeyView:
    """A key with itself, which is shown once."""
    return NewKeyView(**view(made.row, database_now(session)).model_dump(), key=made.key)
