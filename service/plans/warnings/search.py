"""Warnings about the search of a study. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from search_spaces.definition import StudyDefinition
from search_spaces.parameters.choices import Choice
from search_spaces.pruning.specs import MedianPruning, PercentilePruning
from search_spaces.wording import counted
from service.plans.lengths import field_values
from service.plans.schemas import PlanWarning, TrialsPlan, warning

FEW_TPE_TRIALS = 10
WIDE_DECADES = 3.0


def search_warnings(definition: StudyDefinition, trials: TrialsPlan) -> Iterator[PlanWarning]:
    """What the search alone shows."""
    search, size = definition.search, trials.space_size
    if search.algorithm == "grid" and size is not None and size > trials.search:
        yield warning(
            "grid_cut_short",
            f"The grid has {size:,} points, of which only the first {trials.search:,} would be evaluated;"
            " whole ranges of the first parameters may be left out. Omit search.trials for one trial per"
            " point.",
            points=size,
            trials=trials.search,
        )
    if search.algorithm != "grid" and search.trials is not None and search.trials > trials.search:
        yield warning(
            "more_trials_than_points",
            f"search.trials is {search.trials:,}, but the space has only"
            f" {counted(trials.search, 'configuration')}, and none is evaluated twice: the study ends after"
            f" {counted(trials.search, 'trial')}.",
            asked=search.trials,
            points=trials.search,
        )
    if search.algorithm == "tpe" and trials.search < FEW_TPE_TRIALS:
        yield warning(
            "few_trials_for_tpe",
            "TPE starts with random trials and learns from completed ones. With"
            f" {counted(trials.search, 'trial')} it has too little to learn from. Use at least"
            f" {FEW_TPE_TRIALS} trials, or search at random.",
            trials=trials.search,
        )
    yield from _learning_rate(definition)
    fractions = [value for value in field_values(definition, "epochs") if float(value) != int(value)]
    if fractions:
        least = min(float(value) for value in field_values(definition, "epochs"))
        left_out = f": at {least:g} epochs {1 - least:.0%} of the rows are never seen" if least < 1 else ""
        yield warning(
            "fractional_epochs",
            f"With a fractional number of epochs a trial sees some rows once more than others{left_out}.",
            least_epochs=least,
        )
    pruning = definition.pruning
    if isinstance(pruning, MedianPruning | PercentilePruning) and pruning.n_startup_trials >= trials.search:
        yield warning(
            "pruning_waits",
            f"No trial can be pruned: {counted(pruning.n_startup_trials, 'trial')} must complete first"
            f" (pruning.n_startup_trials), and the study has {counted(trials.search, 'trial')}.",
            n_startup_trials=pruning.n_startup_trials,
            trials=trials.search,
        )


def _learning_rate(definition: StudyDefinition) -> Iterator[PlanWarning]:
    rate = definition.search.space.parameters.get("learning_rate")
    if rate is None or isinstance(rate, Choice):
        return
    decades = math.log10(rate.max / rate.min) if rate.min > 0 else math.inf
    if decades > WIDE_DECADES and definition.search.learning_rate_range_test is None:
        yield warning(
            "wide_learning_rate",
            f"The learning rate is searched over {decades:.1f} decades ({rate.min:g} to {rate.max:g}), so"
            " most trials would be far from the best rate. Narrow the range first with"
            " search.learning_rate_range_test: true.",
            min=float(rate.min),
            max=float(rate.max),
            decades=round(decades, 2),
        )
    if rate.scale == "linear" and decades > 1:
        above = (rate.max - 10 * rate.min) / (rate.max - rate.min)
        yield warning(
            "linear_learning_rate",
            f"The learning rate is searched on a linear scale, where {above:.0%} of the range {rate.min:g} to"
            f" {rate.max:g} is above {10 * rate.min:g}, ten times its lower end. Use scale: log.",
            min=float(rate.min),
            max=float(rate.max),
        )
