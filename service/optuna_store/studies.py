"""Optuna studies: made by the coordinator, read by everybody."""

from __future__ import annotations

import warnings

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import column, func, select, table

from search_spaces.definition import StudyDefinition
from search_spaces.sampling.history import EVALUATES, REPEAT_OF, SEED, is_orphaned
from service.optuna_store.storage import Storage
from service.optuna_store.values import StudySummary, TrialValues

STUDY_ID_ATTR = "nightsweep_study_id"


def ensure_study(
    storage: BaseStorage,
    name: str,
    definition: StudyDefinition,
    *,
    study_id: str | None = None,
    metric: str | None = None,
) -> optuna.Study:
    """Make the Optuna study, or load it when it is there already.

    Its objectives are the definition's metric and then its costs, which are minimized.

    Args:
        storage: where.
        name: the study's name, the same in Optuna.
        definition: gives the directions, and what the dashboard shows of the study.
        study_id: the service's id, kept as a user attribute.
        metric: what is minimized in place of the definition's objectives.
    """
    objective = definition.objective
    metrics: list[str] = [objective.metric, *objective.costs] if metric is None else [metric]
    directions = [objective.direction if metric is None else "minimize"]
    directions += ["minimize"] * (len(metrics) - 1)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=directions,
        load_if_exists=True,
    )
    wanted = {
        "task": definition.task,
        "model": definition.model.id,
        "quantization": definition.model.quantization,
        "objective": metrics[0],
        "algorithm": definition.search.algorithm,
    }
    if study_id is not None:
        wanted[STUDY_ID_ATTR] = study_id
    present = study.user_attrs
    for key, value in wanted.items():
        if present.get(key) != value:
            study.set_user_attr(key, value)
    if study.metric_names != metrics:
        with warnings.catch_warnings():
            # Names the plots' axes; experimental in Optuna 5.0, and harmless if it goes.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(metrics)
    return study


def load_study(storage: Storage, name: str) -> optuna.Study:
    """Load an Optuna study. Raises `KeyError` when the coordinator has not made it yet."""
    return optuna.load_study(storage=storage, study_name=name)


def find_study_number(storage: Storage, name: str) -> int | None:
    """Optuna's own number of a study, which the dashboard's addresses use; None before it is made."""
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def read_trials(storage: Storage, name: str) -> list[TrialValues]:
    """All trials of a study, by number; empty before the coordinator has made the Optuna study.

    Without orphaned trials (`drop_orphan`), whose numbers are missing.
    """
    number = find_study_number(storage, name)
    if number is None:
        return []
    trials = storage.get_all_trials(number, deepcopy=False)
    return [values_of(trial) for trial in trials if not is_orphaned(trial)]


def values_of(trial: FrozenTrial) -> TrialValues:
    values = tuple(trial.values) if trial.state is TrialState.COMPLETE and trial.values else ()
    return TrialValues(
        number=trial.number,
        params=dict(trial.params),
        value=values[0] if values else None,
        values=values,
        feasible=all(violation <= 0.0 for violation in trial.constraints.values()),
        rungs=tuple(sorted(trial.intermediate_values.items())),
        state=trial.state.name.lower(),
        repeat_of=trial.user_attrs.get(REPEAT_OF),
        seed=trial.user_attrs.get(SEED),
        evaluates=trial.user_attrs.get(EVALUATES),
        user_attrs=dict(trial.user_attrs),
    )


def read_summary(storage: Storage, name: str) -> StudySummary | None:
    """A study's number, size and best trial; None before it is made.

    In three small queries, unless the best value is not the search's or breaks a constraint, or there are
    several objectives: then all completed trials are read.
    """
    number = find_study_number(storage, name)
    if number is None:
        return None
    return StudySummary(number=number, trials=_count(storage, number), best=_best(storage, number))


def _count(storage: Storage, number: int) -> int:
    """Trials of a study. Counted by the database: Optuna's own way builds every trial first (optuna 5.0)."""
    count = select(func.count()).select_from(table("trials")).where(column("study_id") == number)
    with storage.engine.connect() as connection:
        return connection.scalar(count) or 0


def _best(storage: Storage, number: int) -> TrialValues | None:
    """The best of the search's completed trials that break no constraint, by the first objective."""
    directions = storage.get_study_directions(number)
    if len(directions) == 1:
        try:
            best = values_of(storage.get_best_trial(number))
        except ValueError:  # Optuna's word for: no completed trial yet
            return None
        if best.feasible and best.searched:
            return best
    completed = storage.get_all_trials(number, deepcopy=False, states=(TrialState.COMPLETE,))
    eligible = [t for t in map(values_of, completed) if t.feasible and t.searched]
    sign = -1.0 if directions[0] is optuna.study.StudyDirection.MAXIMIZE else 1.0
    return min(eligible, key=lambda t: (sign * t.values[0], t.number), default=None)


def storage_of(study: optuna.Study) -> BaseStorage:
    return study._storage


def frozen_trial(study: optuna.Study, number: int) -> FrozenTrial:
    storage = storage_of(study)
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
