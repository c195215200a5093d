"""Reading trials: parameters and values from Optuna, everything else from the attempts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import SearchSpaceError
from service import optuna_store
from service.errors import NotFound
from service.models import Attempt, Study
from service.states import AttemptState
from service.studies.queries import read_definition, shown_params
from service.trial_values import TrialValues
from service.trials.schemas import AdapterView, AttemptView, ProgressView, RungView, TrialView

Which = Literal["best", "last"]


def list_trials(session: Session, storage: optuna_store.Storage, study: Study) -> list[TrialView]:
    """All trials of a study, by number."""
    definition = read_definition(study)
    attempts: dict[int, list[Attempt]] = {}
    query = select(Attempt).where(Attempt.study_id == study.id).order_by(Attempt.ordinal)
    for attempt in session.scalars(query):
        attempts.setdefault(attempt.trial_number, []).append(attempt)
    return [
        _view(study, definition, values, attempts.get(values.number, []))
        for values in optuna_store.read_trials(storage, study.name)
    ]


def get_trial(session: Session, storage: optuna_store.Storage, study: Study, number: int) -> TrialView:
    """One trial. Raises `NotFound`."""
    values = next((t for t in optuna_store.read_trials(storage, study.name) if t.number == number), None)
    if values is None:
        raise NotFound(f"The study {study.name!r} has no trial {number}.")
    return _view(study, read_definition(study), values, _attempts(session, study, number))


def get_best(session: Session, storage: optuna_store.Storage, study: Study) -> TrialView:
    """The best completed trial. Raises `NotFound` while there is none."""
    summary = optuna_store.read_summary(storage, study.name)
    if summary is None or summary.best is None:
        raise NotFound(f"No trial of the study {study.name!r} has completed{_so_far(study)}.")
    return get_trial(session, storage, study, summary.best.number)


def adapter_folder(session: Session, study: Study, number: int, which: Which) -> str:
    """Where the latest attempt that saved an adapter put it. Raises `NotFound`."""
    for attempt in reversed(_attempts(session, study, number)):
        folder = (attempt.outcome or {}).get(f"{which}_adapter_dir")
        if isinstance(folder, str):
            return folder
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


def _view(
    study: Study, definition: StudyDefinition | None, values: TrialValues, attempts: Sequence[Attempt]
) -> TrialView:
    last = attempts[-1] if attempts else None
    outcome: Mapping[str, Any] = (last.outcome if last else None) or {}
    state, reason = _state(values, last)
    adapter = outcome.get("best_adapter_dir")
    return TrialView(
        number=values.number,
        state=state,
        reason=reason,
        params=shown_params(definition, values.params),
        recipe=_recipe(definition, values.params),
        # The coordinator records an end before it tells Optuna.
        value=values.value if values.value is not None or not _completed(last) else outcome.get("value"),
        best_rung=outcome.get("best_rung"),
        rungs=[RungView(rung=rung, value=_finite(value)) for rung, value in values.rungs],
        metrics=_metrics(outcome, "metrics"),
        final_metrics=_metrics(outcome, "final_metrics"),
        progress=None
        if last is None
        else ProgressView(
            examples_seen=last.examples_seen,
            total_examples=last.total_examples,
            step=last.step,
            train_loss=_finite(last.train_loss),
        ),
        train_seconds=outcome.get("train_seconds"),
        peak_memory_bytes=outcome.get("peak_memory_bytes"),
        predicted_memory_bytes=outcome.get("predicted_memory_bytes"),
        useful_token_share=outcome.get("useful_token_share"),
        started_at=next((a.started_at for a in attempts if a.started_at is not None), None),
        ended_at=last.ended_at if last else None,
        adapter=AdapterView(path=adapter, url=f"/v1/studies/{study.id}/trials/{values.number}/adapter")
        if isinstance(adapter, str)
        else None,
        attempts=[
            AttemptView(
                id=a.id,
                ordinal=a.ordinal,
                state=AttemptState(a.state),
                reason=a.reason,
                worker_id=a.worker_id,
                device=a.device,
                dispatched_at=a.dispatched_at,
                started_at=a.started_at,
                ended_at=a.ended_at,
            )
            for a in attempts
        ],
    )


def _state(values: TrialValues, last: Attempt | None) -> tuple[AttemptState | Literal["waiting"], str]:
    """The latest attempt's state; but a trial can end without an attempt of that state.

    One whose worker was lost too often, or that waited when its study ended, was told to Optuna only.
    """
    told = values.user_attrs.get(optuna_store.OUTCOME_ATTR)
    if told is not None and values.state != "running" and (last is None or last.state == AttemptState.LOST):
        return AttemptState(told), str(values.user_attrs.get(optuna_store.REASON_ATTR, ""))
    if last is None:
        return "waiting", "waiting for a free slot"
    return AttemptState(last.state), last.reason


def _completed(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.state == AttemptState.COMPLETED


def _recipe(definition: StudyDefinition | None, params: Mapping[str, Any]) -> dict[str, Any] | None:
    if definition is None or set(params) != set(definition.search.space.parameters):
        return None  # asked for, and not yet fully drawn
    try:
        return build_recipe(definition, params).model_dump(mode="json")
    except SearchSpaceError:
        return None  # parameters that make no recipe fail the trial, with the reason


def _metrics(outcome: Mapping[str, Any], key: str) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in (outcome.get(key) or {}).items()}


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
