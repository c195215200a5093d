"""Reading trials, from the service's tables alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic_core import from_json, to_json
from sqlalchemy import Select, case, false, func, literal, select, tuple_
from sqlalchemy.orm import Session

from service.analysis import best
from service.db.models import Attempt, Study, Trial
from service.definitions.stored import read_definition
from service.errors import NotFound
from service.studies import queries as study_queries
from service.studies import results, standing
from service.trials.records import read
from service.trials.rendered import render
from service.trials.schemas import AttemptPage, BestView, JudgementView, StudyAttemptView
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
"""`states.TrialState` as one list: of a union, FastAPI would say once for each member what is wrong."""
TrialField = Literal[
    "number",
    "state",
    "reason",
    "params",
    "recipe",
    "repeat_of",
    "seed",
    "evaluates",
    "value",
    "costs",
    "feasible",
    "best_rung",
    "rungs",
    "metrics",
    "final_metrics",
    "diagnosis",
    "progress",
    "train_seconds",
    "peak_memory_bytes",
    "predicted_memory_bytes",
    "useful_token_share",
    "trainable_parameters",
    "gradient_noise_scale",
    "critical_batch_size",
    "started_at",
    "ended_at",
    "adapter",
    "stop_requested",
    "attempts",
]
"""The keys of a `TrialView`."""
Order = Literal["number", "best"]
"""By number; or by the objective, the best first. Those that break a constraint come after those that keep
all of them, those without a value last."""


def list_trials(
    session: Session,
    study: Study,
    *,
    states: Sequence[State] | None,
    sort: Order,
    limit: int | None,
    after: int | None,
    fields: Sequence[TrialField] | None = None,
) -> bytes:
    """One page of the trials that are in one of these states, as a `TrialPage` in JSON.

    Args:
        session: of the service's tables.
        study: whose trials.
        states: None: any.
        sort: see `Order`.
        limit: None: all of them.
        after: the number of the last trial of the page before.
        fields: the keys that each trial has in the answer; None: all.
    """
    query = select(Trial.number, Trial.state, Trial.revision).where(Trial.study_id == study.id)
    if states is not None:
        query = query.where(Trial.state.in_(states))
    if sort == "best":
        query = _best_first(session, study, query, after)
    else:
        query = query.order_by(Trial.number)
        if after is not None:
            query = query.where(Trial.number > after)
    found = session.execute(query if limit is None else query.limit(limit + 1)).all()
    shown = [(row.number, row.state, row.revision) for row in found[:limit]]
    documents = render(session, study, shown)
    if fields is not None:
        documents = [_only(fields, document) for document in documents]
    items = b",".join(documents)
    cursor = shown[-1][0] if len(found) > len(shown) else None
    return b'{"items":[' + items + b'],"next_cursor":' + json.dumps(cursor).encode() + b"}"


def _only(fields: Sequence[TrialField], document: bytes) -> bytes:
    trial = from_json(document)
    return to_json({name: trial[name] for name in fields})


def list_attempts(session: Session, study: Study, *, limit: int | None, after: int | None) -> AttemptPage:
    """One page of a study's attempts, in the order in which they were sent out.

    Args:
        session: of the service's tables.
        study: whose attempts.
        limit: None: all of them.
        after: the id of the last attempt of the page before.
    """
    query = select(Attempt).where(Attempt.study_id == study.id).order_by(Attempt.id)
    if after is not None:
        query = query.where(Attempt.id > after)
    found = session.scalars(query if limit is None else query.limit(limit + 1)).all()
    shown = found[:limit]
    items = [StudyAttemptView.model_validate(attempt) for attempt in shown]
    return AttemptPage(items=items, next_cursor=shown[-1].id if len(found) > len(shown) else None)


def _best_first(
    session: Session, study: Study, query: Select[int, str, int], after: int | None
) -> Select[int, str, int]:
    """The query in the order `best`, from behind a trial."""
    definition = read_definition(study)
    minimize = definition is None or definition.objective.direction == "minimize"
    unmeasured, infeasible = Trial.value.is_(None), Trial.feasible.is_(False)
    # Each ascends: what is compared below as one tuple.
    loss = func.coalesce(Trial.value if minimize else -Trial.value, 0.0)
    order = [case((unmeasured, 1), else_=0), case((infeasible, 1), else_=0), loss, Trial.number]
    query = query.order_by(*order)
    if after is None:
        return query
    last = session.get(Trial, (study.id, after))
    if last is None:
        return query.where(false())
    value = 0.0 if last.value is None else last.value if minimize else -last.value
    place = (int(last.value is None), int(not last.feasible), value, after)
    return query.where(tuple_(*order) > tuple_(*map(literal, place)))


def get_trial(session: Session, study: Study, number: int) -> bytes:
    """One trial, as a `TrialView` in JSON. Raises `NotFound`."""
    query = select(Trial.number, Trial.state, Trial.revision)
    found = session.execute(query.where(Trial.study_id == study.id, Trial.number == number)).one_or_none()
    if found is None:
        raise no_trial(study, number)
    [document] = render(session, study, [(found.number, found.state, found.revision)])
    return document


def no_trial(study: Study, number: int) -> NotFound:
    """What is raised for a number that no trial of the study has."""
    return NotFound(f"The study {study.name!r} has no trial {number}.")


def get_best(session: Session, study: Study) -> BestView:
    """The best trial, and how sure that is. Raises `NotFound` while no feasible one has completed."""
    found = best_of(session, study)
    if found is None:
        keeps = " within its constraints" if study.definition.get("constraints") else ""
        raise NotFound(f"No trial of the study {study.name!r} has completed{keeps}{_so_far(study)}.")
    return found


def best_of(session: Session, study: Study) -> BestView | None:
    """The best trial with its judgement; None while there is none."""
    definition = read_definition(study)
    judged, front = None, None
    if definition is None:
        direction = study_queries.direction_of(session, study)
        row = results.best_of_each(session, {study.id: direction}).get(study.id)
        winner = None if row is None else row.number
    else:
        goal = best.Goal(task=definition.task, objective=definition.objective, repeats=definition.repeats)
        trials = results.compared(session, study, goal)
        judged = best.judgement(definition, trials, over=study.ended_at is not None)
        winner = None if judged is None else judged.winner
        if definition.objective.costs:
            front = standing.pareto_points(definition, results.eligible(session, study))
    if winner is None:
        return None
    [record] = read(session, study, [winner]).records
    return BestView(
        **dict(trial_view(study, definition, record)),
        judgement=None if judged is None else JudgementView.model_validate(judged),
        pareto_front=front,
    )


def adapter_folder(session: Session, study: Study, number: int, which: Which) -> str:
    """The path or URL where the latest attempt that saved an adapter put it. Raises `NotFound`."""
    if study.removing_at is not None:
        raise NotFound(f"The study {study.name!r} is being removed, and its adapters with it.")
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
