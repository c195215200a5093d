"""The copy of a study that Optuna's samplers see: its trials, translated.

Optuna's samplers never see the study itself. They get the trials from which something can be learned: the
prior trials of the preparation, then finished and running ones by number, without failed ones and
repeats; with choices among numbers as ordered positions (`search_spaces.sampling.axes`). The copy is made
anew for every suggestion from what the storage holds, so that a restart cannot change it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Int
from search_spaces.sampling.axes import Axes, Axis
from search_spaces.sampling.history import History
from search_spaces.sampling.plan import Values


def parameter_distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of a parameter, as the study's storage holds it.

    The upper end of a stepped range is its last point: Optuna would move it there itself, with a warning.
    """
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.encoded)
    log = parameter.scale == "log"
    if isinstance(parameter, Int):
        return IntDistribution(parameter.min, parameter.last, log=log, step=parameter.step)
    return FloatDistribution(parameter.min, parameter.last, log=log, step=parameter.step)


def _position_distribution(axis: Axis) -> BaseDistribution:
    if not isinstance(axis.parameter, Choice):
        return parameter_distribution(axis.parameter)
    last = len(axis.choices) - 1
    return IntDistribution(0, last) if axis.ordered else CategoricalDistribution(range(last + 1))


@dataclass(frozen=True)
class PriorResult:
    """An earlier study's result, taken as one of this study."""

    values: Values
    value: float


class _GivenTrials(InMemoryStorage):
    """The trials it is given, never copied: copying a thousand takes Optuna's own storage 0.2 s."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._given = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self._given if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What samplers note on the trial they draw for other processes that draw: there are none."""


@dataclass(frozen=True)
class StudyCopy:
    """What a model may learn from."""

    axes: Axes
    """Of the parameters that have more than one value."""
    history: History
    prior: Sequence[PriorResult]
    """Results of an earlier study; none where there are several objectives."""
    directions: Sequence[StudyDirection]
    conditional: bool
    """Whether parameters may be inactive."""

    @property
    def finished(self) -> int:
        """How many trials there are to learn from."""
        return len(self.prior) + self.history.finished

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters' distributions, by name: samplers use their generator parameter by parameter."""
        return {name: _position_distribution(axis) for name, axis in sorted(self.axes.items())}

    def study(self, trials: Sequence[FrozenTrial]) -> tuple[Study, FrozenTrial]:
        """A study of these trials, numbered in their order, and the trial that is to be drawn for it."""
        for number, trial in enumerate(trials):
            trial.number = number
        study = optuna.create_study(storage=_GivenTrials(trials), directions=self.directions)
        drawn = create_trial(state=TrialState.RUNNING)
        drawn.number = len(trials)
        return study, drawn

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """The values that a sampler's draw stands for."""
        return {name: self.axes[name].value(position) for name, position in drawn.items()}

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """All trials, pruned ones with their rungs, running ones as they are."""
        found = self._prior_trials()
        for past in self.history.trials:
            frozen = past.frozen
            if frozen.state is TrialState.FAIL:
                continue
            # Optuna ranks pruned trials by their rungs, and cannot where there are several objectives.
            rungs = frozen.intermediate_values if len(self.directions) == 1 else {}
            results = {
                "values": frozen.values,
                "intermediate_values": rungs,
                "constraints": frozen.constraints,
            }
            found.append(self._translate(past.values, state=frozen.state, **results))
        return found

    @cached_property
    def completed(self) -> list[FrozenTrial]:
        """All trials as a model of values takes them, which can make nothing of a pruned trial.

        A pruned trial counts as completed with its last value, but as no better than the median and no
        worse than the worst completed one; without a value (and with several objectives) as the worst. A
        constraint for which some trials were not measured counts as satisfied by them, by as much as the
        largest violation: memory that sufficed is not measured, memory that did not is.
        """
        done = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        if not done:
            return []
        signs = [-1.0 if d is StudyDirection.MAXIMIZE else 1.0 for d in self.directions]
        worst = [sign * max(sign * trial.values[i] for trial in done) for i, sign in enumerate(signs)]
        median = statistics.median_low(trial.values[0] for trial in done)
        known: dict[str, float] = {}
        for trial in self.trials:
            for key, violation in trial.constraints.items():
                known[key] = max(known.get(key, 0.0), abs(violation))
        satisfied = {key: -most for key, most in sorted(known.items())}

        found = []
        for trial in self.trials:
            values = trial.values
            if trial.state is TrialState.PRUNED:
                last = trial.intermediate_values.get(trial.last_step or 0, math.nan)
                low, high = sorted((median, worst[0]))
                values = [min(max(last, low), high)] if math.isfinite(last) else worst
            state = trial.state if trial.state is TrialState.RUNNING else TrialState.COMPLETE
            constraints = satisfied | {key: trial.constraints[key] for key in trial.constraints}
            results = {"values": values, "constraints": constraints if state.is_finished() else None}
            found.append(
                create_trial(params=trial.params, distributions=trial.distributions, state=state, **results)
            )
        return found

    def _prior_trials(self) -> list[FrozenTrial]:
        return [
            self._translate(found.values, state=TrialState.COMPLETE, values=[found.value])
            for found in self.prior
        ]

    def _translate(self, config: Mapping[str, Any], **results: Any) -> FrozenTrial:
        params = {name: axis.position(config[name]) for name, axis in self.axes.items() if name in config}
        distributions = {name: self.distributions[name] for name in params}
        return create_trial(params=params, distributions=distributions, **results)
