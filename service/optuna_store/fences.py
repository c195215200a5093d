"""Fences: a coordinator whose lease is over cannot write to Optuna's storage either.

The lease lives in the service's database, and Optuna writes to its own. A coordinator that is frozen
between the two would wake and still write. So the fencing number is in Optuna's database, too: one
row for each study, raised by every taking of its lease before anything is read, and looked at in the very
transaction of each write. The row is locked until that transaction has ended, so a fence is raised either
before it, which then fails, or after it, and what it wrote is then seen by the process that raised the fence.

On PostgreSQL the lock is the row's; a process frozen with it is cut off by the server
(`service.db.connections`). SQLite has one lock for the whole file, which a fenced transaction takes at its
start: one that reads first and writes later could not wait for another writer.
"""

from __future__ import annotations

from typing import Any, TypeVar

from optuna.storages import RDBStorage
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    delete,
    event,
    select,
    update,
)
from sqlalchemy.orm import ORMExecuteState, Session, scoped_session, sessionmaker

from service.db.rows import insert_unless
from service.errors import LeaseLost
from service.optuna_store import trial_numbers

S = TypeVar("S", bound=RDBStorage)

_FENCED = "nightsweep_fenced"
_WROTE = "nightsweep_wrote"

_fences = Table(
    "nightsweep_fences",
    MetaData(),
    Column("study_name", String(512), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("owner", String(64), nullable=False),
)


def create_table(engine: Engine) -> None:
    """Make the table of fences beside Optuna's own, where missing."""
    _fences.create(engine, checkfirst=True)


def is_made(connection: Connection) -> bool:
    """Whether the table is there."""
    return connection.dialect.has_table(connection, _fences.name)


def listen(engine: Engine) -> None:
    """Have fenced transactions on this engine begin with the write lock, where that is the file's."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", _begin)


def _begin(connection: Connection) -> None:
    # Elsewhere the driver begins transactions by itself, at the first write.
    if connection.get_execution_options().get(_FENCED, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def raise_fence(storage: RDBStorage, name: str, *, number: int, owner: str) -> int | None:
    """Keep all earlier holders of a study's lease from writing to it.

    Doing so again changes nothing.

    Args:
        storage: Optuna's.
        name: the study's; it need not have been made.
        number: the fencing number of the lease that was taken.
        owner: of the lease.

    Returns:
        None: the fence that stands now is the given one. Else the number of another holder's, which is not
        lower, and then nothing was changed.
    """
    with writing(storage).begin() as connection:
        first = insert_unless(connection, _fences).values(study_name=name, number=number, owner=owner)
        connection.execute(first.on_conflict_do_nothing())
        fence = _locked(connection, name)
        assert fence is not None
        standing, holder = fence
        if standing > number or (standing == number and holder != owner):
            return standing
        is_it = _fences.c.study_name == name
        connection.execute(update(_fences).where(is_it).values(number=number, owner=owner))
        return None


def fenced(storage: S, name: str, *, number: int, owner: str) -> S:
    """The same storage for the holder of a study's lease: every write looks at the study's fence.

    Args:
        storage: Optuna's; it stays as it is, and both share their connections.
        name: the study's.
        number: the fencing number of the lease.
        owner: of the lease.

    Returns:
        A storage whose writes raise `LeaseLost`, and leave nothing behind, once the fence was raised again.
        It creates no trial with another number than it was drawn for (`trial_numbers`).
    """
    sessions = sessionmaker(bind=writing(storage))

    def flushed(session: Session, _context: object) -> None:
        session.info[_WROTE] = True

    def executed(state: ORMExecuteState) -> None:
        if not state.is_select:
            state.session.info[_WROTE] = True

    def about_to_commit(session: Session) -> None:
        session.flush()
        if not session.info.get(_WROTE, False):
            return
        if _locked(session.connection(), name, share=True) != (number, owner):
            raise LeaseLost(
                f"the lease {number} on study {name!r} has ended: another coordinator took the study"
            )

    def ended(session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            session.info.pop(_WROTE, None)

    event.listen(sessions, "after_flush", flushed)
    event.listen(sessions, "do_orm_execute", executed)
    event.listen(sessions, "before_commit", about_to_commit)
    event.listen(sessions, "after_transaction_end", ended)
    trial_numbers.listen(sessions)
    # Not `copy.copy`, for which a storage opens another engine.
    holders = type(storage).__new__(type(storage))
    vars(holders).update(vars(storage))
    holders.scoped_session = scoped_session(sessions)
    return holders


def writing(storage: RDBStorage) -> Engine:
    """The storage's engine, with which SQLite's lock is taken at the start of every transaction."""
    return storage.engine.execution_options(**{_FENCED: True})


def _locked(connection: Connection, name: str, *, share: bool = False) -> tuple[int, str] | None:
    """A study's fence: number and owner. Nobody can raise it before this transaction has ended."""
    found = select(_fences.c.number, _fences.c.owner).where(_fences.c.study_name == name)
    row = connection.execute(found.with_for_update(read=share)).one_or_none()
    return None if row is None else (row.number, row.owner)


def remove(storage: RDBStorage, name: str) -> None:
    """Remove the fence of a study that is gone."""
    with writing(storage).begin() as connection:
        connection.execute(delete(_fences).where(_fences.c.study_name == name))
