"""The service's only door to Optuna: its storage, and the asks, reports and tells of the coordinator.

The coordinator alone asks and tells. Everybody else, the REST process and the dashboard, only reads.
Optuna's steps are rungs: nominal training examples.

One file of more than 400 lines, because it is one door: nobody else in the service has a storage in hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Engine, column, create_engine, event, func, inspect, select, table
from sqlalchemy.engine import make_url

from search_spaces import samplers
from search_spaces.definition import StudyDefinition
from search_spaces.errors import SearchSpaceExhausted
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.pruners import NoPruning
from search_spaces.pruning_rules import Curve, Judge
from service import pruning_reasons, sqlite_files
from service.errors import SchemaOutOfDate
from service.settings import SQLITE_BUSY_SECONDS, Settings, make_home
from service.states import AttemptState
from service.trial_values import StudySummary, TrialValues

StorageInternalError = optuna.exceptions.StorageInternalError

Storage = RDBStorage
"""What `open_storage` gives: for those who must not know Optuna."""

STUDY_ID_ATTR = "nightsweep_study_id"
OUTCOME_ATTR = "outcome"
REASON_ATTR = "reason"
OUT_OF_MEMORY_CONSTRAINT = "out_of_memory"
JUDGED_ATTR = "nightsweep_judged"

__all__ = [
    "OUTCOME_ATTR",
    "REASON_ATTR",
    "SearchSpaceExhausted",
    "Storage",
    "StorageInternalError",
    "StudySummary",
    "TrialValues",
    "ask",
    "ask_repeat",
    "check_storage",
    "close_storage",
    "complete_ask",
    "create_tables",
    "drop_strays",
    "ensure_study",
    "find_study_number",
    "load_study",
    "open_storage",
    "read_summary",
    "read_trials",
    "remove_session",
    "report",
    "should_prune",
    "tell",
    "unfinished_asks",
]

# Optuna logs every trial at INFO to its own handler; the events table already tells that story.
optuna.logging.set_verbosity(optuna.logging.WARNING)


# -- storage -----------------------------------------------------------------------------------------


def open_storage(settings: Settings) -> Storage:
    """Open Optuna's storage. Its tables must exist already (`nightsweep db upgrade`).

    Raises:
        SchemaOutOfDate: the tables are missing or of another version of Optuna.
    """
    make_home(settings)
    options = _engine_options(settings)
    # Looked at first: the storage's constructor fails without its tables, and leaves a connection behind.
    engine = create_engine(settings.optuna_url, **options)
    try:
        made = inspect(engine).has_table("version_info")
    finally:
        engine.dispose()
    if not made:
        where = make_url(settings.optuna_url).render_as_string(hide_password=True)
        raise SchemaOutOfDate(f"{where} has no tables of Optuna's. Run `nightsweep db upgrade`.")
    storage = RDBStorage(
        settings.optuna_url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True
    )
    _tune(storage.engine)
    try:
        check_storage(storage)
    except SchemaOutOfDate:
        close_storage(storage)
        raise
    return storage


def check_storage(storage: Storage) -> None:
    """Raise `SchemaOutOfDate` unless the storage answers and is of this version of Optuna."""
    try:
        current = storage.get_current_version() == storage.get_head_version()
    except AssertionError:  # Optuna's way to say that its version table is gone
        current = False
    if not current:
        raise SchemaOutOfDate("Optuna's tables are of another version. Run `nightsweep db upgrade`.")


def create_tables(settings: Settings) -> None:
    """Create or upgrade Optuna's own tables. The caller holds the upgrade's lock."""
    make_home(settings)
    if make_url(settings.optuna_url).get_backend_name() == "sqlite":
        sqlite_files.use_write_ahead_log(settings.optuna_url)
    storage = RDBStorage(
        settings.optuna_url, engine_kwargs=_engine_options(settings), skip_compatibility_check=True
    )
    try:
        if storage.get_current_version() != storage.get_head_version():
            storage.upgrade()
    finally:
        close_storage(storage)


def close_storage(storage: Storage) -> None:
    """Give back every connection. The storage must not be used afterwards."""
    storage.remove_session()
    storage.engine.dispose()


def remove_session(storage: Storage) -> None:
    """Call this from a thread that ends: Optuna keeps one session, so one connection, per thread."""
    storage.remove_session()


def _engine_options(settings: Settings) -> dict[str, Any]:
    if make_url(settings.optuna_url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}}
    return {"pool_pre_ping": True}


def _tune(engine: Engine) -> None:
    """On SQLite in WAL mode this is safe against a crash of the process, and commits need not wait."""
    if engine.dialect.name != "sqlite":
        return

    def set_up(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", set_up)
    engine.dispose()  # the connection that checked the schema was opened without them


# -- studies -----------------------------------------------------------------------------------------


def ensure_study(
    storage: Storage,
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

    Without strays (`drop_strays`), whose numbers are missing.
    """
    number = find_study_number(storage, name)
    if number is None:
        return []
    trials = storage.get_all_trials(number, deepcopy=False)
    return [_values(trial) for trial in trials if not samplers.is_stray(trial)]


def _values(trial: FrozenTrial) -> TrialValues:
    values = tuple(trial.values) if trial.state is TrialState.COMPLETE and trial.values else ()
    return TrialValues(
        number=trial.number,
        params=dict(trial.params),
        value=values[0] if values else None,
        values=values,
        feasible=all(violation <= 0.0 for violation in trial.constraints.values()),
        rungs=tuple(sorted(trial.intermediate_values.items())),
        state=trial.state.name.lower(),
        repeat_of=trial.user_attrs.get(samplers.REPEAT_OF),
        seed=trial.user_attrs.get(samplers.SEED),
        user_attrs=dict(trial.user_attrs),
    )


def read_summary(storage: Storage, name: str) -> StudySummary | None:
    """A study's number, size and best trial; None before it is made.

    In three small queries, unless the best value is a repeat's or breaks a constraint, or there are several
    objectives: then all completed trials are read.
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
            best = _values(storage.get_best_trial(number))
        except ValueError:  # Optuna's word for: no completed trial yet
            return None
        if best.feasible and best.repeat_of is None:
            return best
    completed = storage.get_all_trials(number, deepcopy=False, states=(TrialState.COMPLETE,))
    eligible = [t for t in map(_values, completed) if t.feasible and t.repeat_of is None]
    sign = -1.0 if directions[0] is optuna.study.StudyDirection.MAXIMIZE else 1.0
    return min(eligible, key=lambda t: (sign * t.values[0], t.number), default=None)


# -- asking ------------------------------------------------------------------------------------------


def ask(
    study: optuna.Study, definition: StudyDefinition, preparation: Preparation = NOTHING
) -> tuple[int, dict[str, Any]]:
    """Take the sampler's next trial: its number and all its parameters.

    Raises:
        SearchSpaceExhausted: the space has no further configuration.
    """
    trial = samplers.suggest(study, definition, preparation)
    return trial.number, dict(trial.params)


def ask_repeat(
    study: optuna.Study, definition: StudyDefinition, *, of: int, seed: int
) -> tuple[int, dict[str, Any]]:
    """Make a trial that runs another one's recipe with a further seed: its number and its parameters."""
    trial = samplers.suggest_repeat(study, definition, of, seed)
    return trial.number, dict(trial.params)


def unfinished_asks(study: optuna.Study) -> list[TrialValues]:
    """Trials that were asked for and not told of: running, or left by a coordinator that died."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [_values(trial) for trial in running if not samplers.is_stray(trial)]


def drop_strays(study: optuna.Study) -> None:
    """End trials that got another number than they were drawn for, whose asker died before it could.

    That happens when two coordinators ask at once, one of which has lost the study's lease.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if samplers.is_stray(trial):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def complete_ask(
    study: optuna.Study, definition: StudyDefinition, number: int, preparation: Preparation = NOTHING
) -> dict[str, Any]:
    """The parameters of an unfinished ask, with those its asker did not live to draw.

    Raises:
        SearchSpaceExhausted: the space has no configuration for it.
    """
    samplers.complete_suggestion(study, definition, _frozen(study, number), preparation)
    return dict(_frozen(study, number).params)


# -- reporting and pruning ---------------------------------------------------------------------------


def report(study: optuna.Study, number: int, rung: int, value: float) -> bool:
    """Report the objective at a rung. A rung reported before, or a finished trial, is left as it is.

    Returns:
        Whether the rung is the trial's latest, so that the pruner may be asked about it. It is not
        while a further attempt goes over rungs that a lost one had reported.
    """
    frozen = _frozen(study, number)
    if frozen.state.is_finished():
        return False
    if rung not in frozen.intermediate_values:
        _storage(study).set_trial_intermediate_value(frozen._trial_id, rung, float(value))
    return rung >= max(frozen.intermediate_values, default=0)


def should_prune(
    study: optuna.Study, definition: StudyDefinition, number: int, max_examples: int
) -> str | None:
    """Ask the definition's pruner about a running trial, after its latest report.

    The answer is kept in the storage before it is given. So a coordinator that died before it could act on
    one is followed by another that gets the same, whatever other trials have reported meanwhile.

    Args:
        study: the Optuna study.
        definition: names the pruner and its settings.
        number: the trial.
        max_examples: training examples that a trial of this study sees at most.

    Returns:
        None to go on; else why not, in numbers. None for repeats and with several objectives, always.
    """
    frozen = _frozen(study, number)
    if (
        isinstance(definition.pruning, NoPruning)
        or definition.objective.costs
        or samplers.REPEAT_OF in frozen.user_attrs
        or frozen.state.is_finished()
        or frozen.last_step is None
    ):
        return None
    judged = f"{JUDGED_ATTR}:{frozen.last_step}"
    if judged in frozen.system_attrs:
        kept: str | None = frozen.system_attrs[judged]
        return kept
    judge = Judge(
        spec=definition.pruning,
        minimize=definition.objective.direction == "minimize",
        every_examples=definition.evaluation.every_examples or frozen.last_step,
        max_examples=max_examples,
        seed=definition.search.seed,
    )
    finding = judge.judge(_curve(frozen), lambda: _peers(study, number))
    reason = None if finding is None else pruning_reasons.describe(definition.objective.metric, finding)
    _storage(study).set_trial_system_attr(frozen._trial_id, judged, reason)
    return reason


def _peers(study: optuna.Study, number: int) -> list[Curve]:
    """All other trials but those that failed or were cancelled, and repeats."""
    return [
        _curve(trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.number != number
        and trial.state is not TrialState.FAIL
        and samplers.REPEAT_OF not in trial.user_attrs
    ]


def _curve(trial: FrozenTrial) -> Curve:
    return Curve(
        number=trial.number,
        rungs=tuple(sorted(trial.intermediate_values.items())),
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        feasible=all(violation <= 0 for violation in trial.constraints.values()),
    )


# -- telling -----------------------------------------------------------------------------------------


_TOLD_AS: dict[AttemptState, TrialState] = {
    AttemptState.COMPLETED: TrialState.COMPLETE,
    AttemptState.PRUNED: TrialState.PRUNED,
    # A sampler ignores failed trials, so it would never learn to avoid these two.
    AttemptState.DIVERGED: TrialState.PRUNED,
    AttemptState.OUT_OF_MEMORY: TrialState.PRUNED,
    AttemptState.FAILED: TrialState.FAIL,
    AttemptState.CANCELLED: TrialState.FAIL,
}


def tell(
    study: optuna.Study,
    number: int,
    outcome: AttemptState,
    reason: str,
    *,
    value: float | None = None,
    costs: Sequence[float] = (),
    violations: Mapping[str, float] | None = None,
) -> None:
    """Tell how a trial ended. Telling again changes nothing.

    Running out of memory is also a violated constraint, so that the sampler learns where memory ends;
    trials without the constraint count as feasible in Optuna 5 (`_split_trials` of its TPE sampler).

    Args:
        study: the Optuna study.
        number: the trial.
        outcome: how it ended; kept as a user attribute beside the reason. Never `lost`.
        reason: why, in words.
        value: the objective at the best rung, of a completed trial and of no other.
        costs: what it cost, in the order of `objective.costs`; likewise.
        violations: constraint -> by how much its bound is exceeded; at most 0 where it is kept.
    """
    frozen = _frozen(study, number)
    if frozen.state.is_finished():
        return  # told before, by a coordinator that died afterwards
    broken = dict(violations or {})
    if outcome is AttemptState.OUT_OF_MEMORY:
        broken[OUT_OF_MEMORY_CONSTRAINT] = 1.0
    for name, violation in broken.items():
        if name not in frozen.constraints:
            optuna.trial.Trial(study, frozen._trial_id).set_constraint(name, violation)
    # The attributes come first: those of a finished trial cannot be changed.
    storage = _storage(study)
    storage.set_trial_user_attr(frozen._trial_id, OUTCOME_ATTR, str(outcome))
    storage.set_trial_user_attr(frozen._trial_id, REASON_ATTR, reason)
    values = [value, *costs] if outcome is AttemptState.COMPLETED and value is not None else None
    study.tell(number, values, state=_TOLD_AS[outcome], skip_if_finished=True)


def _storage(study: optuna.Study) -> optuna.storages.BaseStorage:
    return study._storage


def _frozen(study: optuna.Study, number: int) -> FrozenTrial:
    storage = _storage(study)
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
