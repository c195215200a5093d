"""The configurations that earlier sweeps of a schedule have evaluated, which a sweep leaves out.

A configuration counts as evaluated where its number would mean the same today: the model, data, objective
and evaluation are the same, data and local models by content, and so is every field of its recipe, the seed
too. Of trials, those count that have completed, that diverged, and that were pruned under the same pruning;
those that failed, were cancelled or ran out of memory do not, nor do repeats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.preparation import Preparation
from search_spaces.sampling.plan import prepared_space
from search_spaces.space.search_space import SearchSpace
from service.db.kinds import StudyKind
from service.db.models import Study
from service.definitions.stored import read_definition, read_preparation
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_summary, read_trials
from service.optuna_store.telling import OUTCOME_ATTR
from service.optuna_store.values import TrialValues
from service.states import AttemptState
from service.warm_start import recipe_points

INPUTS = ("model", "data.train", "data.eval")
"""What has to be the same by content."""
MOST = 10_000
"""Configurations that a study keeps, the newest: more than any grid has points."""
_CLOCKS = timedelta(days=1)
"""By how much the clocks of two coordinators differ at most."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What is left out of a sweep."""

    digests: tuple[str, ...] = ()
    basis: str | None = None
    changed: tuple[str, ...] = ()
    """Of `INPUTS`, those whose content was another one in the sweep before."""


def find_evaluated(
    session: Session,
    storage: Storage,
    study: Study,
    definition: StudyDefinition,
    prepared: Preparation,
) -> Evaluated:
    """What earlier sweeps of a study's schedule have evaluated of its space.

    Where a sweep before was prepared for the very same definition and data, what it had found is taken over,
    and only what has ended since is looked at.

    Args:
        session: reads the sweeps.
        storage: holds their trials.
        study: the sweep that is about to start.
        definition: its own.
        prepared: its bounds and fingerprints.
    """
    if not prepared.fingerprints.keys() >= set(INPUTS):
        return Evaluated()
    space, basis = prepared_space(definition, prepared), _basis(definition, prepared)
    others = _others(study)
    same = Study.preparation["evaluated_basis"].as_string() == basis
    known = session.scalars(others.where(same).limit(1)).first()
    digests: dict[str, None] = {}
    sweeps = others
    if known is not None:
        digests = dict.fromkeys(read_preparation(known).evaluated)
        since = known.created_at - _CLOCKS
        sweeps = others.where(or_(Study.ended_at.is_(None), Study.ended_at >= since))
    alike = [
        (sweep, earlier)
        for sweep in session.scalars(sweeps)
        if (earlier := _alike(sweep, definition, prepared)) is not None
    ]
    on_grid = None
    if alike and definition.search.algorithm == "grid":
        on_grid = {space.configuration_key(point) for point in space.grid_points()}
    for sweep, earlier in reversed(alike):
        for values in _points(storage, sweep, earlier, definition, space):
            if on_grid is None or space.configuration_key(values) in on_grid:
                digests.setdefault(space.configuration_digest(values))
    before = _fingerprints_before(session, others)
    return Evaluated(
        digests=tuple(digests)[-MOST:],
        basis=basis,
        changed=tuple(n for n in INPUTS if n in before and before[n] != prepared.fingerprints[n]),
    )


def best_of_all(
    session: Session,
    storage: Storage,
    study: Study,
    definition: StudyDefinition,
    prepared: Preparation,
) -> tuple[str, TrialValues] | None:
    """The best trial of the sweeps whose numbers mean the same, and its sweep; None: none completed."""
    sign = 1.0 if definition.objective.direction == "minimize" else -1.0
    found = []
    for sweep in session.scalars(_others(study)):
        if _alike(sweep, definition, prepared) is not None:
            summary = read_summary(storage, sweep.name)
            if summary is not None and summary.best is not None and summary.best.value is not None:
                found.append((sign * summary.best.value, sweep.name, summary.best))
    best = min(found, key=lambda entry: entry[:2], default=None)
    return None if best is None else (best[1], best[2])


def comparable(sweep: Study, other: Study) -> bool:
    """Whether the numbers of two sweeps mean the same: their data were known, and the same."""
    definition = read_definition(other)
    return definition is not None and _alike(sweep, definition, read_preparation(other)) is not None


def _others(study: Study) -> Select[Study]:
    """The other sweeps of its schedule that have been prepared, the newest first."""
    query = select(Study).where(
        Study.schedule_id == study.schedule_id,
        Study.kind == StudyKind.SEARCH,
        Study.id != study.id,
        Study.preparation.is_not(None),
    )
    return query.order_by(Study.created_at.desc(), Study.id.desc())


def _fingerprints_before(session: Session, others: Select[Study]) -> Mapping[str, str]:
    latest = session.scalars(others.limit(1)).first()
    return {} if latest is None else read_preparation(latest).fingerprints


def _alike(sweep: Study, now: StudyDefinition, prepared: Preparation) -> StudyDefinition | None:
    """The sweep's definition, if its numbers mean what those of a study of `now` mean."""
    fingerprints = read_preparation(sweep).fingerprints
    if any(fingerprints.get(name) != prepared.fingerprints.get(name, "") for name in INPUTS):
        return None
    earlier = read_definition(sweep)
    return earlier if earlier is not None and _meaning(earlier) == _meaning(now) else None


def _meaning(definition: StudyDefinition) -> dict[str, Any]:
    """All but the recipe that a trial's number follows from; names of files and folders do not matter."""
    sections = ("model", "task", "data", "metrics", "objective", "evaluation")
    found = definition.model_dump(mode="json", include=set(sections))
    found["model"].pop("id")
    for part in ("train", "eval"):
        found["data"].pop(part)
    return found


def _basis(definition: StudyDefinition, prepared: Preparation) -> str:
    """Equal where the same trials of the same sweeps are to be left out."""
    document = definition.model_dump(mode="json", exclude={"name"})
    document["search"].pop("seed")
    parts = [document, dict(prepared.fingerprints), prepared.learning_rate_bounds]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _points(
    storage: Storage,
    sweep: Study,
    earlier: StudyDefinition,
    now: StudyDefinition,
    space: SearchSpace,
) -> Iterator[Mapping[str, Any]]:
    """Points of a space that a sweep has evaluated."""
    counted = {AttemptState.COMPLETED, AttemptState.DIVERGED}
    if earlier.pruning == now.pruning:
        counted.add(AttemptState.PRUNED)
    for trial in read_trials(storage, sweep.name):
        if not trial.searched or trial.user_attrs.get(OUTCOME_ATTR) not in counted:
            continue
        recipe = build_recipe(earlier, trial.params)
        values = space.prune_inactive(recipe_points.point_of(recipe, earlier, space))
        if recipe_points.misfit(values, space) is None:
            here = build_recipe(now, values)
            if recipe.seed == here.seed and not recipe_points.unlike(recipe, earlier, here, now):
                yield values
