"""Warm start: what a study takes over from an earlier one, as `warm_start` in its definition says.

`enqueue` evaluates the best earlier recipes first; `prior` gives the sampler their results, and so asks for
the same model, data, objective and length. Nothing is ever changed to fit: a recipe that this study's space
does not hold is left out, and a note says which and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, WarmStartSpec, build_recipe
from search_spaces.errors import Fault
from search_spaces.parameters import Choice, Int
from search_spaces.preparation import PriorTrial
from search_spaces.recipe import OPTIMIZER_FIELDS, Recipe
from search_spaces.space import SearchSpace
from service import optuna_store
from service.models import Attempt, Schedule, Study, StudyKind
from service.states import AttemptState, StudyState
from service.studies.queries import NAME, read_definition
from service.trial_values import TrialValues

PATH = "warm_start.from"
TOP_K = 5
"""Recipes that are enqueued unless the definition says how many."""
_MOST_PRIOR = 1000
_MOST_NAMED = 5
_NEVER_COMPARED = frozenset({"seed", "lora_alpha_ratio"})
"""Another seed is another draw of the same recipe; the ratio is compared as the alpha it makes."""


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


@dataclass(kw_only=True)
class _Taken:
    """What has been gathered so far."""

    values: list[tuple[TrialValues, dict[str, Any]]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    differing: dict[str, list[int]] = field(default_factory=dict)
    """Recipe fields in which trials differ from what this study fixes, in words -> the trials."""


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
    bounds: tuple[float, float] | None,
) -> WarmStart:
    """What a study takes over, from what its source has completed by now.

    Args:
        session: reads the source.
        storage: holds its trials.
        study: the study that is about to start.
        definition: its own.
        bounds: what a range test has narrowed its learning rate to.

    Raises:
        WarmStartError: The source is gone, or no prior for this study.
    """
    spec = definition.warm_start
    if spec is None:
        return WarmStart()
    source = _find(session, spec.from_, sweep=study)
    if source is None:
        raise WarmStartError(f"warm_start.from: no study or schedule is called {spec.from_!r}")
    if source.study is None:
        return WarmStart(notes=(f"no warm start: {source.words}",))
    earlier = read_definition(source.study) if source.study.kind == StudyKind.SEARCH else None
    if earlier is None:
        raise WarmStartError(f"warm_start.from: this version cannot read {source.words}")
    if spec.as_ == "prior" and (found := differences(earlier, definition)):
        unlike = "; ".join(found)
        raise WarmStartError(f"warm_start.from: {source.words} cannot be a prior for this study: {unlike}")
    best = list(_best_first(storage, source.study.name, earlier))
    if not best:
        return WarmStart(notes=(f"no warm start: {source.words} has no completed trial",))
    space = definition.search.space
    if bounds is not None:
        space = space.narrowed("learning_rate", *bounds)
    taken = _gather(best, earlier, definition, space, spec)
    return _enqueue(taken, source, spec) if spec.as_ == "enqueue" else _prior(taken, source)


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

    The name of a sweep's own schedule always refers to the schedule, even if a study has the same name.
    """
    if not NAME.fullmatch(ref):
        return None
    schedule = session.scalars(
        select(Schedule).where(or_(Schedule.id == ref, Schedule.name == ref)).order_by(Schedule.id != ref)
    ).first()
    own = schedule is not None and sweep is not None and sweep.schedule_id == schedule.id
    if not own:
        study = session.scalars(
            select(Study).where(or_(Study.id == ref, Study.name == ref)).order_by(Study.id != ref)
        ).first()
        if study is not None and (sweep is None or study.id != sweep.id):
            return _Source(study=study, words=f"the study {study.name!r}")
    if schedule is None:
        return None
    sweeps = select(Study).where(
        Study.schedule_id == schedule.id,
        Study.kind == StudyKind.SEARCH,
        Study.state == StudyState.COMPLETED,
    )
    if sweep is not None:
        sweeps = sweeps.where(Study.id != sweep.id)
    latest = session.scalars(sweeps.order_by(Study.fired_for.desc(), Study.created_at.desc())).first()
    if latest is None:
        words = f"the schedule {schedule.name!r} has no other completed sweep yet"
        return _Source(study=None, words=words, schedule=True)
    words = f"the schedule {schedule.name!r} (its sweep {latest.name!r})"
    return _Source(study=latest, words=words, schedule=True)


def _best_first(
    storage: optuna_store.Storage, name: str, definition: StudyDefinition
) -> Iterator[TrialValues]:
    """The completed trials of a search that broke no constraint, the best objective first."""
    sign = 1 if definition.objective.direction == "minimize" else -1
    trials = [
        (sign * trial.value, trial.number, trial)
        for trial in optuna_store.read_trials(storage, name)
        if trial.value is not None and trial.feasible and trial.repeat_of is None
    ]
    return (trial for _, _, trial in sorted(trials, key=lambda ranked: ranked[:2]))


def _gather(
    best: list[TrialValues],
    earlier: StudyDefinition,
    now: StudyDefinition,
    space: SearchSpace,
    spec: WarmStartSpec,
) -> _Taken:
    """The best recipes as points of this study's space, until there are enough."""
    taken = _Taken()
    enqueue = spec.as_ == "enqueue"
    wanted = spec.top_k or (TOP_K if enqueue else _MOST_PRIOR)
    on_grid = None
    if enqueue and now.search.algorithm == "grid":
        on_grid = {space.configuration_key(point) for point in space.grid_points()}
    seen = set()
    for trial in best:
        if len(taken.values) >= wanted:
            break
        recipe = build_recipe(earlier, trial.params)
        values = space.prune_inactive(_point(recipe, earlier, space))
        misfit = _misfit(values, space)
        key = space.configuration_key(values)
        if misfit is None and on_grid is not None and key not in on_grid:
            misfit = "is between the grid's points"
        if misfit is not None:
            taken.outside.append(f"trial {trial.number}: {misfit}")
            continue
        unlike = _unlike(recipe, earlier, build_recipe(now, values), now)
        for difference in unlike:
            taken.differing.setdefault(difference, []).append(trial.number)
        if (unlike and not enqueue) or (enqueue and key in seen):
            continue
        seen.add(key)
        taken.values.append((trial, values))
    return taken


def _enqueue(taken: _Taken, source: _Source, spec: WarmStartSpec) -> WarmStart:
    count = len(taken.values)
    numbers = ", ".join(f"{trial.number} ({trial.value:.4g})" for trial, _ in taken.values[:_MOST_NAMED])
    more = f" and {count - _MOST_NAMED} more" if count > _MOST_NAMED else ""
    notes = [f"warm start from {source.words}: none of its recipes is in this study's space"]
    if count:
        recipes = "recipe is" if count == 1 else f"{count} best recipes are"
        first = f"{'trial' if count == 1 else 'trials'} {numbers}{more}"
        notes = [f"warm start from {source.words}: its {recipes} evaluated first, {first}"]
    notes += _left_out(taken)
    notes += [f"evaluated with this study's fixed values: {difference}" for difference in taken.differing]
    return WarmStart(enqueued=tuple(values for _, values in taken.values), notes=tuple(notes))


def _prior(taken: _Taken, source: _Source) -> WarmStart:
    count = len(taken.values)
    results = "1 result is" if count == 1 else f"{count} results are"
    notes = [f"warm start from {source.words}: {results} given to the sampler"]
    notes += _left_out(taken)
    unlike = {number for numbers in taken.differing.values() for number in numbers}
    if unlike:
        trials = "1 trial was" if len(unlike) == 1 else f"{len(unlike)} trials were"
        what = "; ".join(list(taken.differing)[:_MOST_NAMED])
        notes.append(f"{trials} left out because the recipe differs from this study's fixed values: {what}")
    prior = [
        PriorTrial(params=values, value=trial.value)
        for trial, values in taken.values
        if trial.value is not None
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


def _point(recipe: Recipe, definition: StudyDefinition, space: SearchSpace) -> dict[str, Any]:
    """A recipe's values of the fields that a space searches."""
    values = _resolved(recipe, definition)
    point = {}
    for name, parameter in space.parameters.items():
        value = values[name]
        whole = isinstance(parameter, Int) and isinstance(value, float) and value.is_integer()
        point[name] = int(value) if whole else value
    return point


def _resolved(recipe: Recipe, definition: StudyDefinition) -> dict[str, Any]:
    """Every field with the value in force: alpha both ways, and what the study gives in a recipe's place."""
    values = {name: getattr(recipe, name) for name in Recipe.model_fields}
    values["lora_alpha"] = recipe.alpha
    values["lora_alpha_ratio"] = recipe.alpha / recipe.lora_r
    values["quantization"] = recipe.quantization or definition.model.quantization
    values["max_length"] = recipe.max_length or definition.data.max_length
    return values


def _misfit(values: Mapping[str, Any], space: SearchSpace) -> str | None:
    """Why a point is not in a space, in words; None if it is."""
    for name, value in values.items():
        parameter = space.parameters[name]
        if not parameter.contains(value):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            if isinstance(parameter, Choice):
                return f"{name} {shown} is not one of the choices"
            inside = parameter.min <= value <= parameter.max
            where = "between the steps of" if inside else "outside"
            return f"{name} {shown} is {where} {parameter.min:g} to {parameter.max:g}"
    return None if space.contains(values) else "its parameters differ from those of this study"


def _unlike(there: Recipe, earlier: StudyDefinition, here: Recipe, now: StudyDefinition) -> list[str]:
    """The fields in which two recipes differ and that matter to what they train, in words."""
    before, after = _resolved(there, earlier), _resolved(here, now)
    ignored = set(_NEVER_COMPARED)
    ignored |= {name for name, owner in OPTIMIZER_FIELDS.items() if here.optimizer != owner}
    if here.learning_rate_scaling == "none":
        ignored.add("learning_rate_batch_size")
    return [
        f"{name} {after[name]} instead of {before[name]}"
        for name in before
        if name not in ignored and before[name] != after[name]
    ]


def _fault(spec: WarmStartSpec, message: str, allowed: str | None = None) -> Fault:
    return Fault(path=PATH, value=spec.from_, message=message, allowed=allowed)
