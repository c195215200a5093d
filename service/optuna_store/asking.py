"""Asking the sampler for trials. One asker at a time: the coordinator that holds the study's lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.sampling import suggest
from search_spaces.sampling.history import is_orphaned
from search_spaces.sampling.requested import Request
from service.optuna_store.studies import frozen_trial, values_of
from service.optuna_store.values import TrialCondition, TrialValues

_CONDITIONS = {
    TrialState.RUNNING: TrialCondition.RUNNING,
    TrialState.COMPLETE: TrialCondition.COMPLETE,
    TrialState.PRUNED: TrialCondition.PRUNED,
    TrialState.FAIL: TrialCondition.FAILED,
}


def ask(
    study: optuna.Study,
    definition: StudyDefinition,
    preparation: Preparation = NOTHING,
    request: Request | None = None,
) -> tuple[int, dict[str, Any]]:
    """Take the sampler's next trial, or the one that was requested: its number and all its parameters.

    Raises:
        SearchSpaceExhausted: the space has no further configuration.
        RequestRefusedError: it has none that the request leaves.
    """
    trial = suggest.suggest(
        study, definition, preparation, sole_asker=True, request=request
    )  # the fence sees to it
    return trial.number, dict(trial.params)


def ask_repeat(
    study: optuna.Study, definition: StudyDefinition, *, of: int, seed: int
) -> tuple[int, dict[str, Any]]:
    """Make a trial that runs another one's recipe with a further seed: its number and its parameters."""
    trial = suggest.suggest_repeat(study, definition, of, seed)
    return trial.number, dict(trial.params)


def ask_evaluation(study: optuna.Study, evaluates: Mapping[str, Any]) -> int:
    """Make a trial that evaluates an adapter and trains nothing: its number."""
    return suggest.suggest_evaluation(study, evaluates).number


def unfinished_asks(study: optuna.Study) -> list[TrialValues]:
    """Trials that were asked for and not told of: running, or left by a coordinator that died."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [values_of(trial) for trial in running if not is_orphaned(trial)]


def conditions(study: optuna.Study) -> dict[int, TrialCondition]:
    """How each trial stands, without orphaned trials that were dropped and without what others enqueued."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if is_orphaned(trial):
            if trial.state is TrialState.RUNNING:
                found[trial.number] = TrialCondition.ORPHANED
        elif trial.state is TrialState.RUNNING and not suggest.is_complete(trial):
            found[trial.number] = TrialCondition.INCOMPLETE
        elif trial.state in _CONDITIONS:
            found[trial.number] = _CONDITIONS[trial.state]
    return found


def drop_orphan(study: optuna.Study, number: int) -> None:
    """End a trial that got another number than it was drawn for, whose asker died before it could.

    A fenced storage makes none (`trial_numbers`); those of earlier versions may have some.
    """
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def complete_ask(
    study: optuna.Study, definition: StudyDefinition, number: int, preparation: Preparation = NOTHING
) -> dict[str, Any]:
    """The parameters of an unfinished ask, with those its asker did not live to draw.

    Raises:
        SearchSpaceExhausted: the space has no configuration for it.
    """
    suggest.complete_suggestion(study, definition, frozen_trial(study, number), preparation)
    return dict(frozen_trial(study, number).params)
