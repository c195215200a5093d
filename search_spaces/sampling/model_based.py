"""Draws by Optuna's samplers that learn: TPE and the Gaussian process."""

from __future__ import annotations

import importlib.util
import warnings

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search_spaces.errors import SuggestionError
from search_spaces.sampling.plan import Values
from search_spaces.sampling.study_copy import StudyCopy

GP_TRIALS = 200
"""Most finished trials that the Gaussian process is fitted to: its time grows with their third power, and
0.2 s a draw is spent at this many."""


def draw_tpe(study_copy: StudyCopy, seed: int) -> Values:
    """A joint draw of all axes of the study copy, active or not, by the tree-structured Parzen estimator.

    Source: Bergstra et al. 2011; as multivariate, Falkner et al. 2018 (arXiv 1807.01774).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group
        sampler = TPESampler(
            seed=seed,
            # Whether there are enough trials to begin is the caller's decision.
            n_startup_trials=0,
            # All else is as Optuna has it: see `samplers.n_startup_trials`. Stated because it matters:
            # parameters are drawn together; where some are conditional, those together that occur together.
            multivariate=True,
            group=study_copy.conditional,
            # Trials that are still running push new ones away.
            constant_liar=True,
        )
    return _draw(study_copy, sampler, study_copy.trials)


def draw_gp(study_copy: StudyCopy, seed: int) -> Values:
    """A joint draw of all axes of the study copy, active or not, by a Gaussian process (Optuna's: Matern 5/2,
    logarithmic expected improvement). Empty while no trial has completed.

    Raises:
        SuggestionError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise SuggestionError(
            "search.algorithm gp needs PyTorch where the coordinator runs: pip install torch, or use tpe"
        )
    trials = learned_by_gp(study_copy)
    if not trials:
        return {}
    sampler = GPSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)
    return _draw(study_copy, sampler, trials)


def learned_by_gp(study_copy: StudyCopy) -> list[FrozenTrial]:
    """The running trials and at most `GP_TRIALS` finished ones: half of them the latest, half the best.

    None while no trial has completed.
    """
    trials = study_copy.completed
    finished = [trial for trial in trials if trial.state.is_finished()]
    if len(finished) <= GP_TRIALS:
        return trials
    older, latest = finished[: -GP_TRIALS // 2], finished[-GP_TRIALS // 2 :]
    sign = -1.0 if study_copy.directions[0] is optuna.study.StudyDirection.MAXIMIZE else 1.0
    best = sorted(older, key=lambda trial: sign * trial.values[0])[: GP_TRIALS // 2]
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    return best + latest + running


def _draw(study_copy: StudyCopy, sampler: BaseSampler, trials: list[FrozenTrial]) -> Values:
    study, trial = study_copy.study(trials)
    space = study_copy.distributions
    if study_copy.conditional:
        # Groups of parameters, or those that every trial has; the others are drawn one by one.
        space = sampler.infer_relative_search_space(study, trial)
    drawn = sampler.sample_relative(study, trial, space)
    for name, distribution in study_copy.distributions.items():
        if name not in drawn:
            drawn[name] = sampler.sample_independent(study, trial, name, distribution)
    return study_copy.values(drawn)
