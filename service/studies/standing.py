"""The progress of a study and its results so far: its stage, its best trial, its Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.sampling.plan import planned_trials
from service.analysis import best
from service.analysis.winner import Judgement
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import EventRow, Study, Trial
from service.definitions.stored import read_preparation
from service.devices import heartbeats
from service.optuna_store.values import TrialValues
from service.states import StudyState
from service.studies.schemas import ListedBest, ParetoPoint, PreparationView, Stage

_START_SECONDS = 10.0
"""How long a coordinator that was started together with the API may take to its first heartbeat."""


def stage(study: Study, definition: StudyDefinition | None, *, repeats: int) -> Stage | None:
    """What a study is doing; None before it begins and after its end.

    Args:
        study: its row.
        definition: None: this version cannot read it.
        repeats: how many of its trials are repeats.
    """
    if study.ended_at is not None:
        return None
    if study.kind == StudyKind.RANGE_TEST:
        return None if study.started_at is None else "range test"
    if study.started_at is None:  # queued, or paused before it was begun
        tests = definition is not None and definition.search.learning_rate_range_test is not None
        return "range test" if tests and study.preparation is None and study.range_test_id else None
    return "repeats" if repeats else "search"


def coordinator_is_missing(session: Session, studies: Sequence[Study]) -> bool:
    """Whether no coordinator is alive, although some of these studies need one.

    False for a moment after any event: `nightsweep serve` answers before its coordinator has begun.
    """
    if not any(study.state in (StudyState.QUEUED, StudyState.RUNNING) for study in studies):
        return False
    if heartbeats.living(session):
        return False
    newest = session.scalars(select(EventRow.at).order_by(EventRow.id.desc()).limit(1)).first()
    return newest is None or abs((database_now(session) - newest).total_seconds()) > _START_SECONDS


def reason(study: Study, now: datetime, *, coordinator_missing: bool, paused_test: str | None = None) -> str:
    """Why a study is in its state, in words; a study that its coordinator has left waits for another one.

    Args:
        study: the study.
        now: by the database's clock.
        coordinator_missing: no coordinator runs (`coordinator_is_missing`).
        paused_test: that it waits for its range test, which is paused, in words; None: it does not.
    """
    if study.cancel_requested or study.state not in (StudyState.QUEUED, StudyState.RUNNING):
        return study.reason
    if paused_test is not None and study.state == StudyState.QUEUED:
        return paused_test
    wait = "waiting for a coordinator"
    expires = study.lease_expires_at
    if study.state == StudyState.RUNNING and expires is not None and expires < now:
        wait += f": the one that ran it has not answered since {expires:%Y-%m-%d %H:%M:%S} UTC"
    elif study.state == StudyState.RUNNING and study.lease_owner is None:
        wait += ": the one that ran it has stopped"
    elif not coordinator_missing:
        return study.reason
    if coordinator_missing:
        wait += "; none is running" if ":" in wait else ": none is running"
        wait += ". Start one with `nightsweep serve` or `nightsweep coordinator`"
        wait += "; if one is running, /readyz says what is wrong"
    return wait


def preparation_view(study: Study) -> PreparationView | None:
    """The same as the REST API shows it."""
    if study.preparation is None:
        return None
    prepared = read_preparation(study)
    return PreparationView(
        learning_rate_bounds=prepared.learning_rate_bounds,
        enqueued=len(prepared.enqueued),
        prior=len(prepared.prior),
        evaluated=len(prepared.evaluated),
        fingerprints=dict(prepared.fingerprints),
        notes=list(prepared.notes),
    )


def trials_requested(study: Study, definition: StudyDefinition | None) -> int | None:
    """How many trials the search has; None where the definition cannot be read."""
    return None if definition is None else planned_trials(definition, read_preparation(study))


def repeats_requested(definition: StudyDefinition | None, requested: int | None) -> int:
    """How many runs follow the search, at most: fewer recipes may complete than are to be repeated."""
    if definition is None or definition.repeats is None:
        return 0
    top_k = definition.repeats.top_k if requested is None else min(definition.repeats.top_k, requested)
    return definition.repeats.seeds * top_k


def listed_best(row: Trial | None, judged: Judgement | None) -> ListedBest | None:
    """The best trial in short: by its repeats, once they are done.

    Args:
        row: the best of the search; None: none has completed.
        judged: what repeats say; None: the definition has none.
    """
    if judged is not None:
        return ListedBest(trial_number=judged.winner, value=judged.first.value)
    if row is None or row.value is None:
        return None
    return ListedBest(trial_number=row.number, value=row.value)


def dashboard_path(study: Study) -> str | None:
    """Where the dashboard shows a study; None before a coordinator has taken it."""
    return None if study.optuna_number is None else f"/dashboard/studies/{study.optuna_number}"


def pareto_points(definition: StudyDefinition, trials: Sequence[TrialValues]) -> list[ParetoPoint]:
    """The Pareto front as the REST API shows it."""
    return [
        ParetoPoint(
            trial_number=trial.number,
            value=trial.values[0],
            costs=best.costs(definition, trial),
            params=definition.search.space.decode(trial.params),
        )
        for trial in best.pareto_front(definition, trials)
    ]
