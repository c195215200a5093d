"""Finding a study or schedule by what people call it, and adding rows beside other writers."""

from __future__ import annotations

import re
from typing import TypeVar

from sqlalchemy import Connection, Engine, Table, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.db.models import Base, RemovedStudy, Schedule, Study

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""What a reference by id or name can look like; nothing else is looked up."""

Named = TypeVar("Named", Study, Schedule)


def find(session: Session, kind: type[Named], ref: str, *, lock: bool = False) -> Named | None:
    """The row with this id, else the one with this name.

    Args:
        session: reads.
        kind: `Study` or `Schedule`.
        ref: an id or a name.
        lock: lock the row, and read again what this session read before it had the lock.
    """
    if not NAME.fullmatch(ref):
        return None
    query = select(kind).where(or_(kind.id == ref, kind.name == ref)).order_by(kind.id != ref)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    return session.scalars(query).first()


def find_removed(session: Session, ref: str) -> RemovedStudy | None:
    """What is left of the removed study with this id, else of the last one with this name."""
    if not NAME.fullmatch(ref):
        return None
    query = select(RemovedStudy).where(or_(RemovedStudy.id == ref, RemovedStudy.name == ref))
    return session.scalars(query.order_by(RemovedStudy.id != ref, RemovedStudy.removed_at.desc())).first()


def insert_unless(
    connection: Connection | Engine, table: Table | type[Base]
) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what is done where the key is there already (`on_conflict_do_...`)."""
    insert_into = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    return insert_into(table)


def insert(session: Session, row: Base) -> bool:
    """Add a row; False if one with the same key is there, such as that of a request beside this one."""
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True
