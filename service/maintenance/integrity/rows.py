"""The rows that the comparison of the two databases looks at, read by plain SQL."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, inspect, text

from search_spaces.sampling.history import DRAWN_FOR_KEY, EVALUATES, REPEAT_OF, SEED
from service.definitions.stored import effective_document
from service.optuna_store.studies import STUDY_ID_ATTR
from service.optuna_store.telling import OUTCOME_ATTR
from service.states import LIVE_ATTEMPT_STATES


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    trial: int
    ordinal: int
    state: str
    loss_cause: str | None
    value: float | None
    """The objective, where its outcome has one."""

    @property
    def live(self) -> bool:
        return self.state in LIVE_ATTEMPT_STATES


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What the row of a trial copies of Optuna's storage."""

    params: frozenset[str]
    """Names."""
    values: tuple[float, ...]
    """The objective and then the costs."""
    rungs: frozenset[int]
    repeat_of: int | None
    seed: int | None
    evaluates: Mapping[str, Any] | None


@dataclass(kw_only=True)
class StudyRows:
    """A study in the service's tables."""

    id: str
    state: str
    definition: Mapping[str, Any]
    preparation: Mapping[str, Any] | None
    lease_number: int
    removing: bool = False
    """A coordinator removes it: what Optuna had of it may be gone."""
    attempts: list[AttemptRow] = field(default_factory=list)
    """By trial and ordinal."""
    ends: dict[int, set[str]] = field(default_factory=dict)
    """Trial -> ends that were recorded of it without an attempt, by events."""
    rungs: set[tuple[int, int]] = field(default_factory=set)
    """(trial, rung)."""
    trials: dict[int, TrialRow] = field(default_factory=dict)
    """By number."""

    @classmethod
    def empty(cls) -> StudyRows:
        return cls(id="", state="", definition={}, preparation=None, lease_number=0)

    @property
    def last_attempts(self) -> dict[int, AttemptRow]:
        return {attempt.trial: attempt for attempt in self.attempts}


@dataclass(kw_only=True)
class OptunaTrial:
    number: int
    state: str
    values: list[float | None] = field(default_factory=list)
    params: dict[str, float | None] = field(default_factory=dict)
    """Name -> Optuna's own number for the value."""
    rungs: set[int] = field(default_factory=set)
    outcome: str | None = None
    repeat_of: int | None = None
    seed: int | None = None
    evaluates: Mapping[str, Any] | None = None
    drawn_for: int | None = None

    @property
    def finished(self) -> bool:
        return self.state not in ("RUNNING", "WAITING")

    @property
    def orphaned(self) -> bool:
        """As `search_spaces.sampling.history.is_orphaned`."""
        return self.drawn_for is not None and self.drawn_for != self.number


@dataclass(kw_only=True)
class OptunaRows:
    """A study in Optuna's storage."""

    study_id: str | None = None
    """The service's id of it, as a user attribute."""
    fence: int | None = None
    trials: dict[int, OptunaTrial] = field(default_factory=dict)
    """By number, without orphaned trials."""


STUDY_COLUMNS = "id, name, state, definition, extensions, preparation, lease_number, removing_at"


def read_service(connection: Connection) -> dict[str, StudyRows]:
    """The service's studies by name."""
    found = {
        row.name: StudyRows(
            id=row.id,
            state=row.state,
            definition=effective_document(_json(row.definition), _json(row.extensions)),
            preparation=_json(row.preparation),
            lease_number=row.lease_number,
            removing=row.removing_at is not None,
        )
        for row in connection.execute(text(f"SELECT {STUDY_COLUMNS} FROM studies"))
    }
    # What belongs to a study that is gone is a rule's matter, and is thrown away here.
    by_id = defaultdict(StudyRows.empty, {study.id: study for study in found.values()})
    for row in connection.execute(
        text(
            "SELECT study_id, trial_number, ordinal, state, loss_cause, outcome FROM attempts"
            " ORDER BY trial_number, ordinal"
        )
    ):
        attempt = AttemptRow(
            trial=row.trial_number,
            ordinal=row.ordinal,
            state=row.state,
            loss_cause=row.loss_cause,
            value=(_json(row.outcome) or {}).get("value"),
        )
        by_id[row.study_id].attempts.append(attempt)
    for row in connection.execute(
        text("SELECT study_id, trial_number, kind FROM events WHERE kind LIKE 'trial!_%' ESCAPE '!'")
    ):
        if row.trial_number is not None:
            ends = by_id[row.study_id].ends.setdefault(row.trial_number, set())
            ends.add(row.kind.removeprefix("trial_"))
    for row in connection.execute(text("SELECT study_id, trial_number, rung FROM rung_reports")):
        by_id[row.study_id].rungs.add((row.trial_number, row.rung))
    columns = "study_id, number, params, value, costs, rungs, repeat_of, seed, evaluates"
    for row in connection.execute(text(f"SELECT {columns} FROM trials")):
        by_id[row.study_id].trials[row.number] = TrialRow(
            params=frozenset(_json(row.params)),
            values=() if row.value is None else (row.value, *_json(row.costs)),
            rungs=frozenset(rung for rung, _ in _json(row.rungs)),
            repeat_of=row.repeat_of,
            seed=row.seed,
            evaluates=_json(row.evaluates),
        )
    return found


def read_optuna(connection: Connection) -> dict[str, OptunaRows]:
    """Optuna's studies by name."""
    names = {row.study_id: row.study_name for row in connection.execute(text("SELECT * FROM studies"))}
    found = {name: OptunaRows() for name in names.values()}
    trials: dict[int, OptunaTrial] = defaultdict(lambda: OptunaTrial(number=-1, state=""))
    for row in connection.execute(text("SELECT trial_id, study_id, number, state FROM trials")):
        trials[row.trial_id] = OptunaTrial(number=row.number, state=row.state)
    for row in connection.execute(
        text("SELECT trial_id, value FROM trial_values ORDER BY trial_id, objective")
    ):
        trials[row.trial_id].values.append(row.value)
    for row in connection.execute(text("SELECT trial_id, param_name, param_value FROM trial_params")):
        trials[row.trial_id].params[row.param_name] = row.param_value
    for row in connection.execute(text("SELECT trial_id, step FROM trial_intermediate_values")):
        trials[row.trial_id].rungs.add(row.step)
    ours = (("outcome", OUTCOME_ATTR), ("repeat_of", REPEAT_OF), ("seed", SEED), ("evaluates", EVALUATES))
    for attribute, key in ours:
        for row in _attributes(connection, "trial_user_attributes", key):
            setattr(trials[row.trial_id], attribute, json.loads(row.value_json))
    for row in _attributes(connection, "trial_system_attributes", DRAWN_FOR_KEY):
        trials[row.trial_id].drawn_for = json.loads(row.value_json)
    for row in _attributes(connection, "study_user_attributes", STUDY_ID_ATTR):
        found[names[row.study_id]].study_id = json.loads(row.value_json)
    for row in connection.execute(text("SELECT trial_id, study_id FROM trials")):
        trial = trials[row.trial_id]
        if not trial.orphaned:
            found[names[row.study_id]].trials[trial.number] = trial
    if inspect(connection).has_table(FENCES):
        for row in connection.execute(text(f"SELECT study_name, number FROM {FENCES}")):
            if row.study_name in found:
                found[row.study_name].fence = row.number
    return found


FENCES = "nightsweep_fences"


def _attributes(connection: Connection, table: str, key: str) -> list[Any]:
    return list(connection.execute(text(f"SELECT * FROM {table} WHERE key = :key"), {"key": key}))


def _json(stored: Any) -> Any:
    """A JSON column as plain SQL gives it: text on SQLite, read already by PostgreSQL's driver."""
    return json.loads(stored) if isinstance(stored, str) else stored
