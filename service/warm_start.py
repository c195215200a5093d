"""Warm start: what a study takes over from an earlier one, as `warm_start` in its definition says.

`enqueue` evaluates the best earlier recipes first; `prior` gives the sampler their results, and so asks for
the same model, data, objective and length. Nothing is ever changed to fit: a recipe that this study's space
does not hold is left out, and a note says which and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, WarmStartSpec, build_recipe
from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.preparation import Preparation, PriorTrial
from search_spaces.sampling.plan import prepared_space
from search_spaces.wording import shortened
from service import optuna_store
from service.analysis import recipe_points
from service.db.models import Attempt, Schedule, Study, StudyKind
from service.definitions.stored import NAME, read_definition, read_preparation
from service.optuna_store.values import TrialValues
from service.schedules.evaluated import comparable
from service.states import AttemptState, StudyState

PATH = "warm_start.from"
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


@dataclass(frozen=True, kw_only=True)
class _Source:
    study: Study | None
    """None: a schedule of which no sweep has completed yet."""
    words: str
    schedule: bool = False
    """Whether a schedule was named."""
    earlier: tuple[Study, ...] = ()
    """The schedule's sweeps before `study` whose numbers mean the same as its numbers: what they have
    evaluated, it has not evaluated again."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """A completed trial of a source."""

    trial: TrialValues
    definition: StudyDefinition
    """Its study's."""
    name: str
    """The trial's, in words."""


@dataclass(kw_only=True)
class _Taken:
    """What has been gathered so far."""

    values: list[tuple[_Result, dict[str, Any]]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)
    """Recipe fields in which trials differ from what this study fixes, in words -> the trials."""
    evaluated: int = 0
    """How many recipes are not evaluated again."""


def check(session: Session, definition: StudyDefinition) -> list[Fault]:
    """What is wrong with a submitted definition's `warm_start`; paths from the definition's root.

    Of a schedule only whether there is one: its sweeps come and go, and are looked at when the study starts.
    """
    spec = definition.warm_start
    if spec is None:
        return []
    source = _find(session, spec.from_)
    if source is None:
        return [_fault(spec, "does not exist", "the name or id of a study, or of a schedule")]
    if source.schedule:
        return []
    found = source.study
    assert found is not None
    if found.kind != StudyKind.SEARCH:
        return [_fault(spec, "is a range test, which has no recipes to start from", "a study or a schedule")]
    faults = []
    earlier = read_definition(found)
    if earlier is None:
        return [_fault(spec, "was stored by another version and cannot be read by this one")]
    if spec.as_ == "prior":
        faults += [_fault(spec, difference) for difference in differences(earlier, definition)]
    completed = select(func.count()).where(
        Attempt.study_id == found.id, Attempt.state == AttemptState.COMPLETED
    )
    if not session.scalar(completed):
        faults.append(_fault(spec, f"has no completed trial: it is {found.state}"))
    return faults


def resolve(
    session: Session,
    storage: optuna_store.Storage,
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
    source = _find(session, spec.from_, sweep=study)
    if source is None:
        raise WarmStartError(f"warm_start.from: no study or schedule is called {shortened(spec.from_)!r}")
    if source.study is None:
        return WarmStart(notes=(f"no warm start: {source.words}",))
    earlier = read_definition(source.study) if source.study.kind == StudyKind.SEARCH else None
    if earlier is None:
        raise WarmStartError(f"warm_start.from: this version cannot read {source.words}")
    if spec.as_ == "prior" and (found := differences(earlier, definition)):
        unlike = "; ".join(found)
        raise WarmStartError(f"warm_start.from: {source.words} cannot be a prior for this study: {unlike}")
    best = _best_first(storage, source, earlier)
    if not best:
        return WarmStart(notes=(f"no warm start: {source.words} has no completed trial",))
    taken = _gather(best, definition, prepared, spec)
    if spec.as_ == "enqueue":
        return _enqueue(taken, source)
    return _prior(taken, source, _changed_since(source.study, prepared))


def differences(earlier: StudyDefinition, now: StudyDefinition) -> list[str]:
    """In what model, data and objective of two studies differ, in words."""
    found = []
    for section in ("model", "data", "objective"):
        there = getattr(earlier, section).model_dump(mode="json")
        here = getattr(now, section).model_dump(mode="json")
        found += [
            f"{section}.{key} is {there[key]} there and {here[key]} here"
            for key in there
            if there[key] != here[key]
        ]
    return found


def _find(session: Session, ref: str, *, sweep: Study | None = None) -> _Source | None:
    """The study of this id or name, else a schedule's latest sweep that completed; None: neither exists.

    The name of a sweep's own schedule always refers to that schedule, even if a study has the same name, and
    even if the schedule was renamed or removed since.
    """
    if not NAME.fullmatch(ref):
        return None
    schedule = session.scalars(
        select(Schedule).where(or_(Schedule.id == ref, Schedule.name == ref)).order_by(Schedule.id != ref)
    ).first()
    schedule_id, name = (schedule.id, schedule.name) if schedule is not None else (None, ref)
    if sweep is not None and sweep.schedule_name == ref:
        schedule_id, name = sweep.schedule_id, ref
    if schedule_id is None or sweep is None or sweep.schedule_id != schedule_id:
        study = session.scalars(
            select(Study).where(or_(Study.id == ref, Study.name == ref)).order_by(Study.id != ref)
        ).first()
        if study is not None and (sweep is None or study.id != sweep.id):
            return _Source(study=study, words=f"the study {study.name!r}")
    if schedule_id is None:
        return None
    completed = select(Study).where(
        Study.schedule_id == schedule_id,
        Study.kind == StudyKind.SEARCH,
        Study.state == StudyState.COMPLETED,
        # One that found everything evaluated has no trial.
        Study.id.in_(select(Attempt.study_id).where(Attempt.state == AttemptState.COMPLETED)),
    )
    if sweep is not None:
        completed = completed.where(Study.id != sweep.id)
    sweeps = session.scalars(completed.order_by(Study.fired_for.desc(), Study.created_at.desc())).all()
    if not sweeps:
        words = f"the schedule {name!r} has no other completed sweep yet"
        return _Source(study=None, words=words, schedule=True)
    latest = sweeps[0]
    earlier = tuple(other for other in sweeps[1:] if comparable(other, latest))
    more = f"its sweep {latest.name!r}"
    if earlier:
        before = "1 before it" if len(earlier) == 1 else f"{len(earlier)} before it"
        more += f" and {before} on the same data"
    return _Source(study=latest, words=f"the schedule {name!r} ({more})", schedule=True, earlier=earlier)


def _changed_since(earlier: Study, prepared: Preparation) -> list[str]:
    """What names the same content no more as when an earlier study was prepared."""
    before = read_preparation(earlier).fingerprints
    now = prepared.fingerprints
    return [name for name in before.keys() & now.keys() if before[name] != now[name]]


def _best_first(storage: optuna_store.Storage, source: _Source, definition: StudyDefinition) -> list[_Result]:
    """The completed trials of a source that broke no constraint, the best objective first."""
    assert source.study is not None
    studies = [(source.study, definition)]
    studies += [(study, read) for study in source.earlier if (read := read_definition(study)) is not None]
    sign = 1 if definition.objective.direction == "minimize" else -1
    found = [
        (
            sign * trial.value,
            age,
            trial.number,
            _Result(trial=trial, definition=read, name=_name(trial, study, age)),
        )
        for age, (study, read) in enumerate(studies)
        for trial in optuna_store.read_trials(storage, study.name)
        if trial.value is not None and trial.feasible and trial.repeat_of is None
    ]
    return [result for *_, result in sorted(found, key=lambda ranked: ranked[:3])]


def _name(trial: TrialValues, study: Study, age: int) -> str:
    return f"{trial.number}" if age == 0 else f"{trial.number} of {study.name}"


def _gather(best: list[_Result], now: StudyDefinition, prepared: Preparation, spec: WarmStartSpec) -> _Taken:
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


def _enqueue(taken: _Taken, source: _Source) -> WarmStart:
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
        recipes = (
            "1 of its best recipes is"
            if taken.evaluated == 1
            else f"{taken.evaluated} of its best recipes are"
        )
        notes.append(
            f"warm start from {source.words}: {recipes} not evaluated again: earlier sweeps have done so "
            "on the same data"
        )
    notes += _left_out(taken)
    notes += [f"evaluated with this study's fixed values: {difference}" for difference in taken.differing]
    return WarmStart(enqueued=tuple(values for _, values in taken.values), notes=tuple(notes))


def _prior(taken: _Taken, source: _Source, changed: list[str]) -> WarmStart:
    count = len(taken.values)
    results = "1 result is" if count == 1 else f"{count} results are"
    notes = [f"warm start from {source.words}: {results} given to the sampler"]
    if changed:
        has = "has" if len(changed) == 1 else "have"
        notes.append(
            f"{' and '.join(sorted(changed))} {has} changed since: these results are of the earlier content"
        )
    notes += _left_out(taken)
    unlike = {number for numbers in taken.differing.values() for number in numbers}
    if unlike:
        trials = "1 trial was" if len(unlike) == 1 else f"{len(unlike)} trials were"
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
    trials = "1 trial was" if count == 1 else f"{count} trials were"
    return [f"{trials} left out because the recipe is outside this study's space: {outside}{more}"]


def _fault(spec: WarmStartSpec, message: str, allowed: str | None = None) -> Fault:
    return Fault(path=PATH, value=shown(spec.from_), message=message, allowed=allowed)
