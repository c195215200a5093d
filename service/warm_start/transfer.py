"""Warm start: what a study takes over from an earlier one, as `warm_start` in its definition says.

`enqueue` evaluates the best earlier recipes first; `prior` gives the sampler their results, and so asks for
the same model, data, objective and length. Nothing is ever changed to fit: a recipe that this study's space
does not hold is left out, and a note says which and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, WarmStartSpec, build_recipe
from search_spaces.preparation import Preparation, PriorTrial
from search_spaces.sampling.plan import prepared_space
from search_spaces.wording import counted, shortened
from service.db.kinds import StudyKind
from service.db.models import Study
from service.definitions.stored import read_definition
from service.optuna_store.storage import Storage
from service.warm_start import recipe_points
from service.warm_start.sources import (
    Result,
    Source,
    best_first,
    changed_since,
    differences,
    find,
    other_task,
    paths_of_each_sweep,
)

TOP_K = 5
"""Recipes that are enqueued unless the definition says how many."""
_MOST_PRIOR = 1000
_MOST_NAMED = 5


class WarmStartError(Exception):
    """The study cannot be started as it asks; the message says why."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What is taken over."""

    enqueued: tuple[Mapping[str, Any], ...] = ()
    prior: tuple[PriorTrial, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Taken:
    """What has been gathered so far."""

    values: list[tuple[Result, dict[str, Any]]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)
    """Recipe fields in which trials differ from what this study fixes, in words -> the trials."""
    evaluated: int = 0
    """How many recipes are not evaluated again."""


def resolve(
    session: Session,
    storage: Storage,
    study: Study,
    definition: StudyDefinition,
    prepared: Preparation,
) -> WarmStart:
    """What a study takes over, from what its source has completed by now.

    Args:
        session: reads the source.
        storage: holds its trials.
        study: the study that is about to start.
        definition: its own.
        prepared: what comes before: the bounds that a range test has found, and what earlier sweeps of its
            schedule have evaluated, which is not enqueued again.

    Raises:
        WarmStartError: The source is gone, or no prior for this study.
    """
    spec = definition.warm_start
    if spec is None:
        return WarmStart()
    source = find(session, spec.from_, sweep=study)
    if source is None:
        raise WarmStartError(f"warm_start.from: no study or schedule is called {shortened(spec.from_)!r}")
    if source.study is None:
        return WarmStart(notes=(f"no warm start: {source.words}",))
    earlier = read_definition(source.study) if source.study.kind == StudyKind.SEARCH else None
    if earlier is None:
        raise WarmStartError(f"warm_start.from: this version cannot read {source.words}")
    ignored = paths_of_each_sweep(session, study, source.study)
    if spec.as_ == "prior" and (found := differences(earlier, definition, ignored=ignored)):
        unlike = "; ".join(found)
        raise WarmStartError(f"warm_start.from: {source.words} cannot be a prior for this study: {unlike}")
    if earlier.task != definition.task:
        raise WarmStartError(
            f"warm_start.from: {source.words} has no recipes for this study:"
            f" {other_task(earlier, definition)}"
        )
    best = best_first(storage, source, earlier)
    if not best:
        return WarmStart(notes=(f"no warm start: {source.words} has no completed trial",))
    taken = _gather(best, definition, prepared, spec)
    if spec.as_ == "enqueue":
        return _enqueue(taken, source, _by_another_metric(earlier, definition))
    return _prior(taken, source, changed_since(source.study, prepared))


def _gather(best: list[Result], now: StudyDefinition, prepared: Preparation, spec: WarmStartSpec) -> _Taken:
    """The best recipes as points of this study's space, until there are enough."""
    space = prepared_space(now, prepared)
    known = frozenset(prepared.evaluated)
    taken = _Taken()
    enqueue = spec.as_ == "enqueue"
    wanted = spec.top_k or (TOP_K if enqueue else _MOST_PRIOR)
    on_grid = None
    if enqueue and now.search.algorithm == "grid":
        on_grid = {space.configuration_key(point) for point in space.grid_points()}
    seen = set()
    for result in best:
        if len(taken.values) + taken.evaluated >= wanted:
            break
        earlier = result.definition
        recipe = build_recipe(earlier, result.trial.params)
        values = space.prune_inactive(recipe_points.point_of(recipe, earlier, space))
        misfit = recipe_points.misfit(values, space)
        key = space.configuration_key(values)
        if misfit is None and on_grid is not None and key not in on_grid:
            misfit = "is between the grid's points"
        if misfit is not None:
            taken.outside.append(f"trial {result.name}: {misfit}")
            continue
        unlike = recipe_points.unlike(recipe, earlier, build_recipe(now, values), now)
        for difference in unlike:
            taken.differing.setdefault(difference, []).append(result.name)
        if (unlike and not enqueue) or (enqueue and key in seen):
            continue
        seen.add(key)
        if enqueue and space.configuration_digest(values) in known:
            taken.evaluated += 1
        else:
            taken.values.append((result, values))
    return taken


def _by_another_metric(earlier: StudyDefinition, now: StudyDefinition) -> list[str]:
    there, here = earlier.objective.metric, now.objective.metric
    return [] if there == here else [f"the best recipes are those by {there}: this study's {here} is another"]


def _enqueue(taken: _Taken, source: Source, notes_before: list[str]) -> WarmStart:
    count = len(taken.values)
    numbers = ", ".join(f"{r.name} ({r.trial.value:.4g})" for r, _ in taken.values[:_MOST_NAMED])
    more = f" and {count - _MOST_NAMED} more" if count > _MOST_NAMED else ""
    notes = []
    if count:
        recipes = "recipe is" if count == 1 else f"{count} best recipes are"
        first = f"{'trial' if count == 1 else 'trials'} {numbers}{more}"
        notes = [f"warm start from {source.words}: its {recipes} evaluated first, {first}"]
    elif not taken.evaluated:
        notes = [f"warm start from {source.words}: none of its recipes is in this study's space"]
    if taken.evaluated:
        recipes = counted(taken.evaluated, "of its best recipes is", "of its best recipes are")
        notes.append(
            f"warm start from {source.words}: {recipes} not evaluated again: earlier sweeps have done so "
            "on the same data"
        )
    notes += _left_out(taken)
    if count:
        notes += notes_before
    notes += [f"evaluated with this study's fixed values: {difference}" for difference in taken.differing]
    return WarmStart(enqueued=tuple(values for _, values in taken.values), notes=tuple(notes))


def _prior(taken: _Taken, source: Source, changed: list[str]) -> WarmStart:
    count = len(taken.values)
    results = counted(count, "result is", "results are")
    notes = [f"warm start from {source.words}: {results} given to the sampler"]
    if changed:
        has = "has" if len(changed) == 1 else "have"
        notes.append(
            f"{' and '.join(sorted(changed))} {has} changed since: these results are of the earlier content"
        )
    notes += _left_out(taken)
    unlike = {number for numbers in taken.differing.values() for number in numbers}
    if unlike:
        trials = counted(len(unlike), "trial was", "trials were")
        what = "; ".join(list(taken.differing)[:_MOST_NAMED])
        notes.append(f"{trials} left out because the recipe differs from this study's fixed values: {what}")
    prior = [
        PriorTrial(params=values, value=result.trial.value)
        for result, values in taken.values
        if result.trial.value is not None
    ]
    return WarmStart(prior=tuple(prior), notes=tuple(notes))


def _left_out(taken: _Taken) -> list[str]:
    if not taken.outside:
        return []
    count = len(taken.outside)
    more = f"; and {count - _MOST_NAMED} more" if count > _MOST_NAMED else ""
    outside = "; ".join(taken.outside[:_MOST_NAMED])
    trials = counted(count, "trial was", "trials were")
    return [f"{trials} left out because the recipe is outside this study's space: {outside}{more}"]
