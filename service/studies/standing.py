"""How far a study has come, and what it has found: its stage, its best trial, its Pareto front. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces import samplers
from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from service.models import Study, StudyKind
from service.optuna_store import StudySummary
from service.studies.schemas import BestTrial, PreparationView, Stage
from service.trial_values import TrialValues
from service.trials import best
from service.winner import Judgement


def stage(study: Study, definition: StudyDefinition | None, trials: Sequence[TrialValues]) -> Stage | None:
    """What a study is doing; None before it begins and after its end."""
    if study.ended_at is not None:
        return None
    if study.kind == StudyKind.RANGE_TEST:
        return None if study.started_at is None else "range test"
    if study.started_at is None:  # queued, or paused before it was begun
        tests = definition is not None and definition.search.learning_rate_range_test is not None
        return "range test" if tests and study.preparation is None and study.range_test_id else None
    return "repeats" if any(trial.repeat_of is not None for trial in trials) else "search"


def preparation(study: Study) -> Preparation:
    """What was settled for a study before its first trial."""
    return NOTHING if study.preparation is None else Preparation.model_validate(study.preparation)


def preparation_view(study: Study) -> PreparationView | None:
    """The same as the REST API shows it."""
    if study.preparation is None:
        return None
    settled = preparation(study)
    return PreparationView(
        learning_rate_bounds=settled.learning_rate_bounds,
        enqueued=len(settled.enqueued),
        prior=len(settled.prior),
        evaluated=len(settled.evaluated),
        fingerprints=dict(settled.fingerprints),
        notes=list(settled.notes),
    )


def trials_requested(study: Study, definition: StudyDefinition | None) -> int | None:
    """How many trials the search has; None where the definition cannot be read."""
    return None if definition is None else samplers.planned_trials(definition, preparation(study))


def repeats_requested(definition: StudyDefinition | None, requested: int | None) -> int:
    """How many runs follow the search, at most: fewer recipes may complete than are to be repeated."""
    if definition is None or definition.repeats is None:
        return 0
    top_k = definition.repeats.top_k if requested is None else min(definition.repeats.top_k, requested)
    return definition.repeats.seeds * top_k


def best_trial(
    study: Study,
    definition: StudyDefinition | None,
    summary: StudySummary | None,
    trials: Sequence[TrialValues],
) -> BestTrial | None:
    """The best trial: by its repeats, once they are done.

    Args:
        study: the study.
        definition: its definition.
        summary: what Optuna knows of it in short; None before its first trial.
        trials: all of its trials, where the definition has repeats; else none are needed.
    """
    if summary is None or summary.best is None or summary.best.value is None:
        return None
    if definition is None or definition.repeats is None:
        params = dict(summary.best.params)
        return BestTrial(
            trial_number=summary.best.number,
            value=summary.best.value,
            params=params if definition is None else definition.search.space.decode(params),
        )
    judged = best.judgement(definition, trials, over=study.ended_at is not None)
    return None if judged is None else _judged(definition, judged, trials)


def _judged(definition: StudyDefinition, judged: Judgement, trials: Sequence[TrialValues]) -> BestTrial:
    winner = next(c for c in judged.candidates if c.trial_number == judged.winner)
    params = next(t.params for t in trials if t.number == judged.winner)
    return BestTrial(
        trial_number=winner.trial_number,
        value=winner.value,
        params=definition.search.space.decode(params),
        mean=winner.mean,
        standard_deviation=winner.standard_deviation,
        n=len(winner.values),
        sentence=judged.sentence,
    )
