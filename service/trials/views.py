"""Trials as the REST API shows them, made from records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.definition import StudyDefinition
from service.analysis.best import costs
from service.db.models import Study
from service.trials.records import TrialRecord, finite
from service.trials.schemas import (
    AdapterView,
    AttemptView,
    EvaluatesView,
    FindingView,
    ProgressView,
    RungView,
    TrialView,
)


def trial_view(study: Study, definition: StudyDefinition | None, record: TrialRecord) -> TrialView:
    """A trial with everything that is known of it."""
    last, outcome = record.last, record.outcome
    swept = last is not None and last.adapters_swept_at is not None
    adapter = None if swept else outcome.get("best_adapter_dir")
    scale = record.gradient_noise_scale
    return TrialView(
        number=record.number,
        state=record.state,
        reason=record.reason,
        params=dict(record.params),
        recipe=_recipe(definition, record),
        repeat_of=record.values.repeat_of,
        seed=record.values.seed,
        evaluates=_evaluates(record),
        value=record.value,
        costs=costs(definition, record.values),
        feasible=record.values.feasible,
        best_rung=outcome.get("best_rung"),
        rungs=_rungs(record),
        metrics=_metrics(outcome.get("metrics")),
        final_metrics=_metrics(outcome.get("final_metrics")),
        diagnosis=[FindingView.model_validate(finding) for finding in record.findings],
        progress=None
        if last is None
        else ProgressView(
            examples_seen=last.examples_seen,
            total_examples=last.total_examples,
            step=last.step,
            train_loss=finite(last.train_loss),
        ),
        train_seconds=outcome.get("train_seconds"),
        peak_memory_bytes=outcome.get("peak_memory_bytes"),
        predicted_memory_bytes=outcome.get("predicted_memory_bytes"),
        useful_token_share=outcome.get("useful_token_share"),
        trainable_parameters=outcome.get("trainable_parameters"),
        gradient_noise_scale=scale,
        critical_batch_size=None if scale is None else max(1, round(scale)),
        started_at=next((a.started_at for a in record.attempts if a.started_at is not None), None),
        ended_at=last.ended_at if last else None,
        adapter=AdapterView(path=adapter, url=f"/v1/studies/{study.id}/trials/{record.number}/adapter")
        if isinstance(adapter, str)
        else None,
        stop_requested=record.stop_requested,
        attempts=[AttemptView.model_validate(attempt) for attempt in record.attempts],
    )


def _evaluates(record: TrialRecord) -> EvaluatesView | None:
    found = record.values.evaluates
    return None if found is None else EvaluatesView(**{key: found[key] for key in ("role", "study", "trial")})


def _recipe(definition: StudyDefinition | None, record: TrialRecord) -> dict[str, Any] | None:
    if definition is None or record.recipe is None:
        return None
    return record.recipe.in_force(
        quantization=definition.model.quantization,
        max_length=definition.data.max_length,
        task=definition.task,
    )


def _rungs(record: TrialRecord) -> list[RungView]:
    views = []
    for rung, value in record.rungs:
        report = record.reports.get(rung)
        views.append(
            RungView(
                rung=rung,
                value=finite(value),
                examples_seen=report.examples_seen if report else None,
                metrics=_metrics(report.metrics if report else None),
                train_loss=finite(report.train_loss) if report else None,
                train_seconds=report.train_seconds if report else None,
                gradient_noise_scale=finite(report.gradient_noise_scale) if report else None,
            )
        )
    return views


def _metrics(metrics: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {name: finite(value) for name, value in (metrics or {}).items()}
