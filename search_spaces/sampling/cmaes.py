"""Draws by CMA-ES, the covariance matrix adaptation evolution strategy.

The variant: CMA-ES with margin (Hamano et al. 2022, arXiv 2205.13482; library `cmaes`), which keeps a least
probability of leaving the present value of a whole number or an ordered choice. Populations have
4 + ⌊3 ln d⌋ members, the search begins at the middle of the space with a standard deviation of a quarter of
it, and begins anew there when it has converged.

Its state is never stored, but rebuilt for every suggestion from the finished trials in the order of their
numbers, each complete population of them making one generation, whoever proposed them: so prior trials,
enqueued points and redrawn ones count, and a restart changes nothing. Only ranks matter to CMA-ES, so pruned
trials take part: behind the completed ones, the longer and the better the nearer; those that break
constraints come last, by how much they break them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces.sampling.plan import Values
from search_spaces.sampling.study_copy import StudyCopy
from search_spaces.sampling.uninformed import derive_seed

if TYPE_CHECKING:
    from cmaes import CMAwM

SIGMA = 0.25
"""Initial standard deviation, as a share of each parameter's range."""


def cmaes_drawer(study_copy: StudyCopy, *seed: object) -> Callable[[int], Values]:
    """Draws of all parameters of `study_copy.axes`, which must be ordered, by attempt.

    Args:
        study_copy: Of a study with one objective and no conditions.
        seed: The study's seed and the trial's number.
    """
    optimizer = _replay(study_copy)

    def draw(attempt: int) -> Values:
        optimizer.reseed_rng(derive_seed(*seed, "cmaes", attempt))
        point, _ = optimizer.ask()
        # The last dimension may be one that nothing reads.
        units = zip(study_copy.axes.items(), point, strict=False)
        return {name: axis.from_unit(float(unit)) for (name, axis), unit in units}

    return draw


def _replay(study_copy: StudyCopy) -> CMAwM:
    finished = [trial for trial in study_copy.trials if trial.state.is_finished()]
    keys = [_rank_key(trial, study_copy.directions[0]) for trial in finished]
    optimizer = _begin(study_copy)
    size = optimizer.population_size
    for first in range(0, len(finished) - size + 1, size):
        if optimizer.should_stop():
            optimizer = _begin(study_copy)
        members = range(first, first + size)
        order = sorted(members, key=lambda index: (*keys[index], index))
        ranks = {index: rank for rank, index in enumerate(order)}
        # Where a dimension is far from its margin, the correction divides by zero in a branch it discards.
        with np.errstate(all="ignore"):
            optimizer.tell([(_point(study_copy, finished[index], index), ranks[index]) for index in members])
    return optimizer


def _begin(study_copy: StudyCopy) -> CMAwM:
    from cmaes import CMAwM  # takes a second to import, for scipy

    bounds, steps = [], []
    for axis in study_copy.axes.values():
        step = 1 / axis.cells if axis.cells else 0.0
        bounds.append((step / 2, 1 - step / 2))
        steps.append(step)
    if len(bounds) == 1:  # CMA-ES is defined from two dimensions on
        bounds.append((0.0, 1.0))
        steps.append(0.0)
    mean = np.full(len(bounds), 0.5)
    return CMAwM(
        mean=mean,
        sigma=SIGMA,
        bounds=np.array(bounds),
        steps=np.array(steps),
        population_size=4 + int(3 * math.log(len(bounds))),
        seed=0,  # set anew for each draw
    )


def _point(study_copy: StudyCopy, trial: FrozenTrial, index: int) -> Any:
    axes = study_copy.axes
    units = [axis.to_unit(axis.value(trial.params[name])) for name, axis in axes.items()]
    if len(units) == 1:
        units.append(derive_seed("unread", index) / 2**32)
    return np.array(units)


def _rank_key(trial: FrozenTrial, direction: StudyDirection) -> tuple[float, float, float]:
    """Sorts from best to worst."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    violation = sum(value for value in trial.constraints.values() if value > 0)
    if violation > 0:
        return 2, violation, 0.0
    if trial.state is TrialState.COMPLETE:
        assert trial.value is not None
        return 0, sign * trial.value, 0.0
    last = trial.last_step
    if last is None or math.isnan(trial.intermediate_values[last]):
        return 1, 1.0, 0.0
    return 1, -last, sign * trial.intermediate_values[last]
