"""The best of a study's trials: the winner, what its repeats say, and the Pareto front. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.definition import ObjectiveSpec, RepeatsSpec, StudyDefinition
from search_spaces.tasks import Task
from service.analysis.pareto import front
from service.analysis.winner import Candidate, Judgement, Run, judge
from service.optuna_store.telling import OUTCOME_ATTR
from service.optuna_store.values import TrialValues
from service.states import AttemptState


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a study aims at: the sections of its definition by which trials are compared."""

    task: Task
    objective: ObjectiveSpec
    repeats: RepeatsSpec | None


def completed(definition: StudyDefinition | Goal, trials: Sequence[TrialValues]) -> list[TrialValues]:
    """The search's completed trials that break no constraint, the best first; no repeats or evaluations."""
    sign = 1.0 if definition.objective.direction == "minimize" else -1.0
    found = [t for t in trials if t.value is not None and t.feasible and t.searched]
    return sorted(found, key=lambda t: (sign * (t.value or 0.0), t.number))


def judgement(
    definition: StudyDefinition | Goal, trials: Sequence[TrialValues], *, over: bool
) -> Judgement | None:
    """Which recipe is the best, and whether that is luck; None before a trial has completed.

    Args:
        definition: the study's.
        trials: all of its trials.
        over: whether the study has ended.
    """
    ranked = completed(definition, trials)
    repeats = definition.repeats
    runs: dict[int, list[Run]] = {}
    for trial in trials:
        if trial.repeat_of is not None:
            runs.setdefault(trial.repeat_of, []).append(_run(trial))
    top_k = 1 if repeats is None else repeats.top_k
    candidates = [
        Candidate(trial_number=trial.number, value=trial.value, runs=runs.get(trial.number, ()))
        for rank, trial in enumerate(ranked)
        if trial.value is not None and (rank < top_k or trial.number in runs)
    ]
    return judge(
        candidates,
        minimize=definition.objective.direction == "minimize",
        planned_runs=0 if repeats is None else repeats.seeds * len(candidates),
        over=over,
    )


def _run(trial: TrialValues) -> Run:
    outcome = trial.user_attrs.get(OUTCOME_ATTR)
    ended = trial.state not in ("running", "waiting")
    state = AttemptState(outcome) if outcome is not None and ended else AttemptState.RUNNING
    return Run(trial_number=trial.number, seed=trial.seed, state=state, value=trial.value)


def pareto_front(definition: StudyDefinition, trials: Sequence[TrialValues]) -> list[TrialValues]:
    """The trials that none beats in the objective and all costs, the best objective first.

    With a single objective: the best trial, and those that equal it.
    """
    sign = 1.0 if definition.objective.direction == "minimize" else -1.0
    # A trial that has not been told its costs yet has a value only, and cannot be compared.
    width = 1 + len(definition.objective.costs)
    found = [t for t in completed(definition, trials) if len(t.values) == width]
    return [found[index] for index in front([(sign * t.values[0], *t.values[1:]) for t in found])]


def costs(definition: StudyDefinition | None, trial: TrialValues) -> dict[str, float]:
    """The costs that the objective names, of a trial that has them."""
    names = () if definition is None else definition.objective.costs
    return dict(zip(names, trial.values[1:], strict=False))
