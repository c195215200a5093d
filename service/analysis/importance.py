"""Which hyperparameters mattered, by PED-ANOVA.

PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255) asks of each hyperparameter how differently it is
distributed among the best trials and among all: one whose good values are like any others did not matter.
Hyperparameters with a condition are handled as conditional PED-ANOVA does (arXiv 2601.20800).

With few trials some importance arises by chance alone. How much, is measured: the same trials with their
values shuffled have no important hyperparameter, so what they show is chance.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search_spaces.sampling.history import is_searched
from search_spaces.wording import counted
from service.optuna_store.storage import Storage
from service.optuna_store.studies import find_study_number

MIN_TRIALS = 10
"""Completed trials below which nothing is said. Optuna advises 5 trials among the best; with fewer than 10
in all, that would be more than half of them."""
BEST_TRIALS = 5
BEST_SHARE = 0.1
"""The best are a tenth of the trials (PED-ANOVA's default), but at least `BEST_TRIALS`."""
MIN_ACTIVE = 5
"""Trials with a conditional hyperparameter below which nothing is said of it."""
SHUFFLES = 40
CHANCE_RANK = 2
"""Chance reaches as far as the second largest of 40 shufflings: about 95 % of them stay below."""


@dataclass(frozen=True, kw_only=True)
class ParameterImportance:
    """What PED-ANOVA says of one hyperparameter."""

    name: str
    importance: float | None
    """Share of the sum over all hyperparameters; None where it cannot be said."""
    above_chance: bool | None
    """Whether it is more than shuffled values show."""
    reason: str | None
    """Why there is no importance."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Of all hyperparameters of a study, the most important first."""

    parameters: Sequence[ParameterImportance]
    trials: int
    """Completed trials it rests on: feasible ones of the search, without repeats and pruned ones."""
    best_trials: int
    """How many of them count as the best."""
    sentence: str


def read_importance(storage: Storage, name: str, parameters: Sequence[str], *, minimize: bool) -> Importance:
    """The importance of a study's hyperparameters for its objective.

    Args:
        storage: where its Optuna study is; it need not have been made yet.
        name: the study's.
        parameters: the hyperparameters it searches.
        minimize: whether less is better.
    """
    number = find_study_number(storage, name)
    found = (
        []
        if number is None
        else storage.get_all_trials(number, deepcopy=False, states=(TrialState.COMPLETE,))
    )
    usable = [
        (trial, trial.values[0])
        for trial in found
        if is_searched(trial)
        and all(violation <= 0 for violation in trial.constraints.values())
        and math.isfinite(trial.values[0])
    ]
    return _importance(usable, parameters, minimize=minimize)


def _importance(
    trials: Sequence[tuple[FrozenTrial, float]], parameters: Sequence[str], *, minimize: bool
) -> Importance:
    count = len(trials)
    if count < MIN_TRIALS:
        sentence = (
            f"{counted(count, 'trial')} completed within the constraints; PED-ANOVA needs at least"
            f" {MIN_TRIALS}. Pruned trials do not count."
        )
        nothing = [_unknown(name, f"fewer than {MIN_TRIALS} trials count") for name in parameters]
        return Importance(parameters=nothing, trials=count, best_trials=0, sentence=sentence)
    best = max(math.ceil(BEST_SHARE * count), BEST_TRIALS)
    skipped: list[ParameterImportance] = []
    judged: list[str] = []
    for name in parameters:
        distributions = [trial.distributions[name] for trial, _ in trials if name in trial.distributions]
        if len(distributions) < MIN_ACTIVE:
            skipped.append(
                _unknown(name, f"it was active in {len(distributions)} of {count} completed trials")
            )
        elif all(distribution.single() for distribution in distributions):
            skipped.append(_unknown(name, "it has only one value"))
        else:
            judged.append(name)
    if len({value for _, value in trials}) == 1:
        nothing = [_unknown(name, "all completed trials have the same value") for name in parameters]
        sentence = (
            f"All {count} completed trials have the same value, so no hyperparameter made a difference."
        )
        return Importance(parameters=nothing, trials=count, best_trials=0, sentence=sentence)
    sign = 1.0 if minimize else -1.0
    values = [sign * value for _, value in trials]
    study = _study([trial for trial, _ in trials])
    share = (best - 0.5) / count  # Optuna rounds share x count up, and best / count may be a hair too much
    measured = _evaluate(study, values, judged, share)
    chance = _chance(study, values, judged, share)
    total = math.fsum(measured.values())
    known = [
        ParameterImportance(
            name=name,
            importance=measured[name] / total if total > 0 else 0.0,
            above_chance=measured[name] > chance[name],
            reason=None,
        )
        for name in sorted(judged, key=lambda name: (-measured[name], name))
    ]
    sentence = (
        f"Shows what distinguishes the best {best} of {count} completed trials. Pruned trials, which have no"
        " value, and repeats do not count."
    )
    return Importance(parameters=[*known, *skipped], trials=count, best_trials=best, sentence=sentence)


def _unknown(name: str, reason: str) -> ParameterImportance:
    return ParameterImportance(name=name, importance=None, above_chance=None, reason=reason)


def _study(trials: Sequence[FrozenTrial]) -> optuna.Study:
    """These trials alone, in memory and with one objective. Their values are given to each evaluation."""
    study = optuna.create_study(storage=InMemoryStorage())
    study.add_trials(
        [
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=0.0)
            for trial in trials
        ]
    )
    return study


def _chance(
    study: optuna.Study, values: Sequence[float], names: Sequence[str], share: float
) -> dict[str, float]:
    """The importance that each hyperparameter reaches when values are dealt out at random, nearly at most."""
    shuffled = list(values)
    dealer = random.Random(0)  # the same numbers for the same trials, whoever asks and when
    rounds = []
    for _ in range(SHUFFLES):
        dealer.shuffle(shuffled)
        rounds.append(_evaluate(study, tuple(shuffled), names, share))
    return {name: sorted(by_name[name] for by_name in rounds)[-CHANCE_RANK] for name in names}


def _evaluate(
    study: optuna.Study, values: Sequence[float], names: Sequence[str], share: float
) -> dict[str, float]:
    """Not normalized.

    Args:
        study: the trials.
        values: theirs, by number; less is better.
        names: the hyperparameters.
        share: of the trials that count as the best.
    """
    if not names:
        return {}
    # Imported late: Optuna takes scikit-learn along, more than a second, for evaluators that are not used.
    from optuna.importance import PedAnovaImportanceEvaluator

    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        # That less is better is so, and that a conditional hyperparameter had few trials is said in words.
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
        warnings.filterwarnings("ignore", message="Some regimes for parameter")
        # With many equal values all may count as the best; then no hyperparameter has any importance.
        warnings.filterwarnings("ignore", message="Target and region quantiles")
        found = evaluator.evaluate(study, list(names), target=lambda trial: values[trial.number])
    return {name: float(value) for name, value in found.items()}
