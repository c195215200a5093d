"""Runs every rule over the two databases, as they are while the service runs.

Optuna's storage is read before the service's tables and again after them. What it says first the service's
tables must know already, since they are written first; what they say Optuna must know the second time, if it
had to be told before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, text

from service.db.connections import open_engine
from service.db.database import make_engine
from service.maintenance.integrity.clocks import find_from_wrong_clocks
from service.maintenance.integrity.comparison import compare
from service.maintenance.integrity.rows import read_optuna, read_service
from service.maintenance.integrity.rules import OPTUNA_RULES, SERVICE_RULES, Rule
from service.maintenance.integrity.violations import Violation
from service.settings import Settings


def find_violations(settings: Settings) -> list[Violation]:
    """Every broken rule, by study and trial. Both schemas must be of this version."""
    with open_engines(settings) as (service, optuna):
        return read_violations(service, optuna)


@contextmanager
def open_engines(settings: Settings) -> Iterator[tuple[Engine, Engine]]:
    """Engines of the service's database and of Optuna's, for plain SQL."""
    service = make_engine(settings)
    optuna = open_engine(settings.optuna_url, settings, application="nightsweep-optuna")
    try:
        yield service, optuna
    finally:
        service.dispose()
        optuna.dispose()


def read_violations(service: Engine, optuna: Engine) -> list[Violation]:
    """The same on engines that are open."""
    with _snapshot(optuna) as connection:
        earlier = read_optuna(connection)
    with _snapshot(service) as connection:
        rows = read_service(connection)
        found = _broken(connection, SERVICE_RULES) + find_from_wrong_clocks(connection)
    with _snapshot(optuna) as connection:
        later = read_optuna(connection)
        found += _broken(connection, OPTUNA_RULES)
    found += compare(rows, earlier, later)
    return sorted(found, key=lambda one: (one.study, -1 if one.trial is None else one.trial, one.rule))


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """One transaction in which every query sees the same rows."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        yield connection
        connection.rollback()


def _broken(connection: Connection, rules: Sequence[Rule]) -> list[Violation]:
    return [
        Violation(rule=rule.name, study=study, trial=trial, found=what)
        for rule in rules
        for study, trial, what in connection.execute(text(rule.broken))
    ]
