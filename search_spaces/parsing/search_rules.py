"""What an algorithm demands of the search space, and a stage before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Float, Int
from search_spaces.parsing.draft import Draft
from search_spaces.space.conditions import needs
from search_spaces.wording import counted

MAX_GRID_POINTS = 10_000


def grid_is_finite(draft: Draft) -> Iterator[Fault]:
    """A grid has a number of points, not too large, and no more trials than that."""
    if draft.algorithm != "grid":
        return
    continuous = [name for name, parameter in draft.parameters.items() if parameter.grid_size is None]
    for name in continuous:
        yield Fault(
            path=f"search.space.{name}",
            value=shown(draft.parameters[name]),
            message="is continuous, so a grid over it has no finite number of points; add points or step"
            " (linear scale only), or list the points in choices",
            allowed="{min: ..., max: ..., points: ...} or {choices: [...]}",
        )
    whole = draft.space is not None and not continuous
    if draft.space is not None and whole:
        size = draft.space.grid_size() or 0
    elif any(parameter.when for parameter in draft.parameters.values()):
        return
    else:
        # With continuous or faulty parameters left out the grid is larger still.
        size = math.prod(parameter.grid_size or 1 for parameter in draft.parameters.values())
    trials = draft.search.trials if draft.search is not None else None
    if size > MAX_GRID_POINTS:
        message = f"makes a grid of {f'{size:,}' if size < 10**15 else 'more than 10^15'} points"
        yield Fault(
            path="search.space",
            value=shown(size),
            message=f"{message}; coarsen it, or use random or tpe",
            allowed=f"at most {MAX_GRID_POINTS:,} points",
        )
    elif trials is not None and trials > size and whole:
        yield Fault(
            path="search.trials",
            value=trials,
            message=f"is more than the grid has ({counted(size, 'point')}); omit it for one trial per point",
            allowed=f"at most {size:,}",
        )


def conditions_lie_on_the_grid(draft: Draft) -> Iterator[Fault]:
    """A grid takes only some whole numbers of a range with `points`, and a condition may wait for others."""
    if draft.algorithm != "grid" or draft.space is None:
        return
    for name, parameter in draft.parameters.items():
        for parent, values in needs(draft.parameters, name).items():
            range_ = draft.parameters[parent]
            if not isinstance(range_, Int) or range_.points is None:
                continue
            on_grid = [range_.grid_value(index) for index in range(range_.grid_size)]
            if values.isdisjoint(on_grid):
                words = ", ".join(map(str, on_grid[:20]))
                message = f"can never hold on this grid, which uses other values of {parent}"
                value = shown(parameter.when)
                yield Fault(path=f"search.space.{name}.when", value=value, message=message, allowed=words)
                break


def algorithm_fits_the_space(draft: Draft) -> Iterator[Fault]:
    """gp and cmaes model every parameter in every trial; cmaes needs numbers, and at least two."""
    if draft.algorithm not in ("gp", "cmaes"):
        return
    conditional = [name for name, parameter in draft.parameters.items() if parameter.when]
    others = "tpe, random or qmc"
    if conditional:
        model = "one Gaussian process" if draft.algorithm == "gp" else "one normal distribution"
        message = f"cannot search conditional parameters ({', '.join(conditional)}): it fits {model} over all"
        message += " parameters, so every trial must have each of them"
        yield Fault(path="search.algorithm", value=draft.algorithm, message=message, allowed=others)
        return
    if draft.algorithm == "gp":
        return
    unordered = [name for name, parameter in draft.parameters.items() if not _is_numeric(parameter)]
    numeric = [name for name, p in draft.parameters.items() if _is_numeric(p) and p.size != 1]
    if unordered:
        message = (
            f"cannot search choices that are not numbers ({', '.join(unordered)}): they have no order for"
        )
        message += " its normal distribution to follow"
        yield Fault(path="search.algorithm", value="cmaes", message=message, allowed=f"gp, {others}")
    elif len(numeric) < 2 and draft.space is not None:
        message = f"needs at least two parameters to adapt their covariance; the space has {len(numeric)}"
        yield Fault(path="search.algorithm", value="cmaes", message=message, allowed=f"gp, {others}")


def _is_numeric(parameter: Parameter) -> bool:
    if not isinstance(parameter, Choice):
        return True
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in parameter.choices)


def range_test_has_a_range(draft: Draft) -> Iterator[Fault]:
    """A range test narrows a range of learning rates, which must be there to be narrowed."""
    if draft.search is None or draft.search.learning_rate_range_test is None:
        return
    test = draft.search.learning_rate_range_test
    path = "search.learning_rate_range_test"
    if test.within is not None:
        message = "is set by the service, so it cannot be given"
        yield Fault(path=f"{path}.within", value=shown(test.within), message=message)
    if draft.algorithm == "grid":
        message = "cannot be combined with a grid, whose points are fixed before the study runs; run the"
        message += " range test separately (nightsweep range-test) and write its bounds into the space"
        yield Fault(path=path, value=shown(test), message=message, allowed="another search.algorithm")
        return
    rate = draft.parameters.get("learning_rate")
    if rate is None:
        if draft.space is not None:
            message = "needs a range of learning rates to narrow, and learning_rate is not searched"
            allowed = "search.space.learning_rate: {min: ..., max: ..., scale: log}"
            yield Fault(path=path, value=shown(test), message=message, allowed=allowed)
        return
    if not isinstance(rate, Float) or rate.step is not None or rate.points is not None:
        yield Fault(
            path="search.space.learning_rate",
            value=shown(rate),
            message="must be a continuous range, because search.learning_rate_range_test narrows it",
            allowed="{min: ..., max: ..., scale: log}, without step, points or choices",
        )
    elif not test.widen and (test.max <= rate.min or test.min >= rate.max):
        yield Fault(
            path=f"{path}.{'max' if test.max <= rate.min else 'min'}",
            value=test.max if test.max <= rate.min else test.min,
            message=f"excludes the searched range ({rate.min:g} to {rate.max:g}) from the sweep, so no bounds"
            " can be found in it; sweep over that range, or let the test widen it (widen: true)",
            allowed=f"more than {rate.min:g}" if test.max <= rate.min else f"less than {rate.max:g}",
        )
