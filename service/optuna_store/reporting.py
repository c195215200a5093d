"""Reporting a trial's rungs, and asking the pruner about the trial."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_spaces.definition import StudyDefinition
from search_spaces.pruning.rules import Judge, RungCurve
from search_spaces.pruning.specs import NoPruning
from search_spaces.sampling.history import REPEAT_OF
from service.optuna_store import pruning_reasons
from service.optuna_store.studies import frozen_trial, storage_of

JUDGED_ATTR = "nightsweep_judged"


def report(study: optuna.Study, number: int, rung: int, value: float) -> bool:
    """Report the objective at a rung. A rung reported before, or a finished trial, is left as it is.

    Returns:
        Whether the rung is the trial's latest, so that the pruner may be asked about it. It is not
        while a further attempt goes over rungs that a lost one had reported.
    """
    frozen = frozen_trial(study, number)
    if frozen.state.is_finished():
        return False
    if rung not in frozen.intermediate_values:
        storage_of(study).set_trial_intermediate_value(frozen._trial_id, rung, float(value))
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
    frozen = frozen_trial(study, number)
    if (
        isinstance(definition.pruning, NoPruning)
        or definition.objective.costs
        or REPEAT_OF in frozen.user_attrs
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
    storage_of(study).set_trial_system_attr(frozen._trial_id, judged, reason)
    return reason


def _peers(study: optuna.Study, number: int) -> list[RungCurve]:
    """All other trials but those that failed or were cancelled, and repeats."""
    return [
        _curve(trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.number != number and trial.state is not TrialState.FAIL and REPEAT_OF not in trial.user_attrs
    ]


def _curve(trial: FrozenTrial) -> RungCurve:
    return RungCurve(
        number=trial.number,
        rungs=tuple(sorted(trial.intermediate_values.items())),
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        feasible=all(violation <= 0 for violation in trial.constraints.values()),
    )
