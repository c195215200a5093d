"""Reading trials: parameters and values from Optuna, everything else from the service's tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.analysis import best
from service.db.models import Attempt, Study
from service.errors import NotFound
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_summary
from service.studies import standing
from service.trials.records import StudyTrials, TrialRecord, read
from service.trials.schemas import BestView, JudgementView, TrialPage, TrialView
from service.trials.views import trial_view

Which = Literal["best", "last"]
State = Literal[
    "waiting",
    "dispatched",
    "running",
    "completed",
    "pruned",
    "diverged",
    "out_of_memory",
    "failed",
    "lost",
    "paused",
    "cancelled",
]
"""`records.TrialState` as one list: of a union, FastAPI would say once for each member what is wrong."""
Order = Literal["number", "best"]
"""By number; or by the objective, the best first. Those that break a constraint come after those that keep
all of them, those without a value last."""


def list_trials(
    session: Session,
    storage: Storage,
    study: Study,
    *,
    states: Sequence[State] | None,
    sort: Order,
    limit: int | None,
    after: int | None,
) -> TrialPage:
    """One page of the trials that are in one of these states.

    All trials are read: a state is what two databases say together, and a diagnosis compares a trial with all
    the others.

    Args:
        session: of the service's tables.
        storage: Optuna's.
        study: whose trials.
        states: None: any.
        sort: see `Order`.
        limit: None: all of them.
        after: the number of the last trial of the page before.
    """
    trials = read(session, storage, study)
    records = list(trials.records)
    if sort == "best":
        minimize = trials.definition is None or trials.definition.objective.direction == "minimize"
        records.sort(key=lambda record: _rank(record, minimize=minimize))
    if after is not None:
        if sort == "number":
            records = [record for record in records if record.number > after]
        else:
            records = list(dropwhile(lambda record: record.number != after, records))[1:]
    found = [record for record in records if states is None or record.state in states]
    shown = found[:limit]
    return TrialPage(
        items=[_view(study, trials, record) for record in shown],
        next_cursor=shown[-1].number if len(found) > len(shown) else None,
    )


def _rank(record: TrialRecord, *, minimize: bool) -> tuple[bool, bool, float]:
    value = record.value
    if value is None:
        return True, not record.values.feasible, 0.0
    return False, not record.values.feasible, value if minimize else -value


def get_trial(session: Session, storage: Storage, study: Study, number: int) -> TrialView:
    """One trial. Raises `NotFound`."""
    trials = read(session, storage, study)
    record = next((r for r in trials.records if r.number == number), None)
    if record is None:
        raise NotFound(f"The study {study.name!r} has no trial {number}.")
    return _view(study, trials, record)


def get_best(session: Session, storage: Storage, study: Study) -> BestView:
    """The best trial, and how sure that is. Raises `NotFound` while no feasible one has completed."""
    found = best_of(storage, study, read(session, storage, study))
    if found is None:
        keeps = " within its constraints" if study.definition.get("constraints") else ""
        raise NotFound(f"No trial of the study {study.name!r} has completed{keeps}{_so_far(study)}.")
    return found


def best_of(storage: Storage, study: Study, trials: StudyTrials) -> BestView | None:
    """The best trial with its judgement; None while there is none."""
    definition = trials.definition
    if definition is None:
        summary = read_summary(storage, study.name)
        winner = summary.best.number if summary is not None and summary.best is not None else None
        judged, front = None, None
    else:
        values = [record.values for record in trials.records]
        judged = best.judgement(definition, values, over=study.ended_at is not None)
        winner = None if judged is None else judged.winner
        front = standing.pareto_points(definition, values) if definition.objective.costs else None
    record = next((r for r in trials.records if r.number == winner), None)
    if record is None:
        return None
    return BestView(
        **dict(_view(study, trials, record)),
        judgement=None if judged is None else JudgementView.model_validate(judged),
        pareto_front=front,
    )


def adapter_folder(session: Session, study: Study, number: int, which: Which) -> str:
    """The path or URL where the latest attempt that saved an adapter put it. Raises `NotFound`."""
    attempts = _attempts(session, study, number)
    for attempt in reversed(attempts):
        folder = (attempt.outcome or {}).get(f"{which}_adapter_dir")
        if not isinstance(folder, str):
            continue
        if (swept := attempt.adapters_swept_at) is not None:
            raise NotFound(
                f"The {which} adapter of trial {number} of the study {study.name!r} was swept on"
                f" {swept:%Y-%m-%d}: only the adapters of its best trials are kept."
            )
        return folder
    if not attempts:
        raise NotFound(f"No trial {number} of the study {study.name!r} has started{_so_far(study)}.")
    raise NotFound(f"Trial {number} of the study {study.name!r} has no {which} adapter{_so_far(study)}.")


def _so_far(study: Study) -> str:
    return "" if study.ended_at is not None else " yet"


def _attempts(session: Session, study: Study, number: int) -> Sequence[Attempt]:
    query = (
        select(Attempt)
        .where(Attempt.study_id == study.id, Attempt.trial_number == number)
        .order_by(Attempt.ordinal)
    )
    return session.scalars(query).all()


def _view(study: Study, trials: StudyTrials, record: TrialRecord) -> TrialView:
    return trial_view(study, trials.definition, record, trials.diagnosis(record.number))
