"""Which hyperparameters a trial gets: grid, random or TPE, from a definition.

A suggestion depends on the definition, the trial's number and (TPE) on what the study has learned so
far, never on how often the asking process was restarted. Optuna's own samplers keep their random state
in memory: after a restart the same seed suggests the same points again. So every draw has its own
generator, seeded from (search.seed, trial number).

A suggestion is drawn whole, written down whole (one system attribute of the Optuna trial), and only then
set parameter by parameter. Should the asker die in between, `complete_suggestion` sets the missing
parameters to what was written down, whatever other trials have been told since.

Grid: trial n is grid point n. Optuna's GridSampler is never used: it picks among unvisited points at
random, and so repeats some under concurrent asks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces.definition import StudyDefinition
from search_spaces.errors import SuggestionError
from search_spaces.parameters import Choice, Float, Int, encode_choice

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

SUGGESTION_KEY = "nightsweep:suggestion"
"""System attribute of an Optuna trial: all its parameters, as Optuna holds them."""


def distribution(parameter: Float | Int | Choice) -> BaseDistribution:
    """The Optuna distribution of a parameter.

    The upper end of a stepped range is its last point: Optuna would move it there itself, with a warning.
    """
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.encoded)
    if isinstance(parameter, Int):
        log = parameter.scale == "log"
        return IntDistribution(parameter.min, parameter.last, log=log, step=parameter.step)
    return FloatDistribution(parameter.min, parameter.last, log=parameter.scale == "log", step=parameter.step)


def distributions(definition: StudyDefinition) -> dict[str, BaseDistribution]:
    """The Optuna distributions of a definition's search space, in the order of the space."""
    return {name: distribution(p) for name, p in definition.search.space.parameters.items()}


def n_startup_trials(trials: int) -> int:
    """Finished trials before TPE takes over from random search.

    Optuna's default is 10; a study of fewer than 40 trials would spend more than a quarter of itself at
    random, so there it is a quarter, but at least 4.
    """
    return max(4, min(10, trials // 4))


def _seed(*parts: object) -> int:
    # Not hash(): Python salts it per process.
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


class StudySampler(BaseSampler):
    """Draws every trial of one study, each with a generator of its own."""

    def __init__(self, study: Study, definition: StudyDefinition) -> None:
        # Optuna hands samplers a bracket's view of the study when the pruner is Hyperband, and the bracket
        # is known only once the pruner object has pruned, so it changes at a restart. We learn from all.
        self._study = study
        self._definition = definition
        self._distributions = distributions(definition)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: suggestions are joint."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's whole suggestion, as written down; drawn and written down if it is not yet."""
        written: dict[str, Any] | None = trial.system_attrs.get(SUGGESTION_KEY)
        if written is not None:
            return written
        drawn = self._draw(trial)
        # As Optuna's own samplers do it (optuna/samplers/_tpe/sampler.py); there is no public call.
        study._storage.set_trial_system_attr(trial._trial_id, SUGGESTION_KEY, drawn)
        return drawn

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuses: a definition's parameters are all in the joint suggestion.

        Raises:
            SuggestionError: Always.
        """
        raise SuggestionError(f"{param_name} is not in this study's search space")

    def _draw(self, trial: FrozenTrial) -> dict[str, Any]:
        search = self._definition.search
        if search.algorithm == "grid":
            return self._grid_point(trial.number)
        drawn: dict[str, Any] = {}
        if search.algorithm == "tpe":
            drawn = self._draw_tpe(trial)
        for name, dist in self._distributions.items():
            if name not in drawn:
                sampler = RandomSampler(seed=_seed(search.seed, trial.number, name))
                drawn[name] = sampler.sample_independent(self._study, trial, name, dist)
        return {name: self._snap(name, drawn[name]) for name in self._distributions}

    def _draw_tpe(self, trial: FrozenTrial) -> dict[str, Any]:
        search = self._definition.search
        finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(finished) < n_startup_trials(search.total_trials):
            return {}
        sampler = TPESampler(
            seed=_seed(search.seed, trial.number, "tpe"),
            # Decided above, on an uncached count.
            n_startup_trials=0,
            # The defaults of Optuna 5 for one objective, stated because they matter: parameters are drawn
            # together, and trials still running push new ones away.
            multivariate=True,
            constant_liar=True,
        )
        # The generator is used parameter by parameter; sorted, so that no storage's key order matters.
        several = {name: dist for name, dist in sorted(self._distributions.items()) if not dist.single()}
        return dict(sampler.sample_relative(self._study, trial, several))

    def _grid_point(self, number: int) -> dict[str, Any]:
        space = self._definition.search.space
        size = space.grid_size()
        if size is None or number >= size:
            points = "no finite number of" if size is None else str(size)
            raise SuggestionError(f"trial {number} has no grid point: the grid has {points} points")
        return {name: encode_choice(value) for name, value in space.grid_point(number).items()}

    def _snap(self, name: str, value: Any) -> Any:
        parameter = self._definition.search.space.root[name]
        return value if isinstance(parameter, Choice) else parameter.snap(value)


def suggest(study: Study, definition: StudyDefinition) -> Trial:
    """Asks for one trial: it is RUNNING in the study's storage and has all its parameters.

    Sets `study.sampler`. One asker at a time: the coordinator that holds the study's lease.

    Raises:
        SuggestionError: The grid has no more points.
    """
    study.sampler = StudySampler(study, definition)
    return study.ask(fixed_distributions=distributions(definition))


def complete_suggestion(study: Study, definition: StudyDefinition, trial: FrozenTrial) -> Trial:
    """Gives a RUNNING trial whose asker died the parameters it is missing.

    They are the values it would have got, had its asker lived. A trial that has them all is left as it is.

    Raises:
        SuggestionError: The trial's number has no grid point.
    """
    study.sampler = StudySampler(study, definition)
    resumed = Trial(study, trial._trial_id)
    for name, dist in distributions(definition).items():
        if isinstance(dist, CategoricalDistribution):
            resumed.suggest_categorical(name, dist.choices)
        elif isinstance(dist, IntDistribution):
            resumed.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
        elif isinstance(dist, FloatDistribution):
            resumed.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
    return resumed
