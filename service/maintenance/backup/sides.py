"""The two databases of a backup, side by side: their tables, and their rows at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, MetaData, Table, text
from tenacity import Retrying, retry_if_exception, retry_if_exception_type, stop_after_delay, wait_random

from service.db.connections import WRITES
from service.db.errors import is_transient
from service.db.models import Base, Coordinator, LoginFailure, LoginSession, PendingLogin
from service.maintenance.schema import VERSION_TABLE

_OPTUNAS_VERSIONS = frozenset({"alembic_version", "version_info"})
"""Tables that say of which version Optuna's others are: made with them, never restored."""

_OF_THE_MOMENT = frozenset(
    table.__tablename__ for table in (Coordinator, LoginFailure, LoginSession, PendingLogin)
)
"""Tables of the service's own that say nothing after a restore."""

_LOCK_TRIES_SECONDS = 120.0  # longer than one that sleeps within a transaction may keep its locks
_LOCK_WAIT_MS = 500  # shorter than PostgreSQL's deadlock_timeout: in a deadlock it is we who give way


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two databases."""

    name: str
    """`service` or `optuna`: the folder in the archive."""
    engine: Engine
    tables: tuple[Table, ...]
    """All that are backed up, parents before children."""
    revision: str
    """Of its schema, as its own migrations call it."""

    @property
    def postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"


def read_sides(service: Engine, optuna: Engine) -> tuple[Side, Side]:
    """Both databases, whose schemas have been checked. In this order they are locked, always."""
    theirs = MetaData()
    theirs.reflect(optuna)
    return (
        Side(
            name="service",
            engine=service,
            tables=tuple(table for table in Base.metadata.sorted_tables if table.name not in _OF_THE_MOMENT),
            revision=_revision(service, VERSION_TABLE),
        ),
        Side(
            name="optuna",
            engine=optuna,
            tables=tuple(table for table in theirs.sorted_tables if table.name not in _OPTUNAS_VERSIONS),
            revision=_revision(optuna, "alembic_version"),
        ),
    )


def _revision(engine: Engine, table: str) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text(f"SELECT version_num FROM {table}")))


@contextmanager
def one_moment(sides: tuple[Side, Side]) -> Iterator[tuple[Connection, Connection]]:
    """Connections that see both databases as they were at one moment, for as long as they are open.

    For that moment all writers are locked out, so neither is ahead of the other by more than the service
    itself allows. It ends before a row is read: writers wait milliseconds, not the backup.
    """
    with ExitStack() as stack:
        first, second = (stack.enter_context(side.engine.connect()) for side in sides)
        with ExitStack() as locks:
            for side in sides:
                locks.enter_context(_writers_locked_out(side))
            for side, connection in zip(sides, (first, second), strict=True):
                _begin_snapshot(side, connection)
        yield first, second


@contextmanager
def _writers_locked_out(side: Side) -> Iterator[None]:
    retrying = Retrying(
        retry=retry_if_exception_type(Exception) & retry_if_exception(is_transient),
        stop=stop_after_delay(_LOCK_TRIES_SECONDS),
        wait=wait_random(0.05, 0.2),
        reraise=True,
    )
    with retrying(_locked, side):
        yield


def _locked(side: Side) -> Connection:
    """A connection that holds the lock: a new one each time, because SQLAlchemy begins no second transaction
    on one whose first could not begin."""
    with ExitStack() as stack:
        connection = stack.enter_context(side.engine.execution_options(**{WRITES: True}).connect())
        if side.postgresql:
            connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))
            names = ", ".join(table.name for table in side.tables)
            connection.execute(text(f"LOCK TABLE {names} IN SHARE MODE"))
        else:
            connection.execute(text("SELECT 1"))  # the transaction takes the write lock as it begins
        stack.pop_all()
        return connection


def _begin_snapshot(side: Side, connection: Connection) -> None:
    """A transaction whose snapshot is taken now, at its first query."""
    if side.postgresql:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    connection.execute(text(f"SELECT count(*) FROM {side.tables[0].name}"))
