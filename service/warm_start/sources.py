"""Where a warm start comes from: a study, or the latest sweeps of a schedule that completed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import Preparation
from search_spaces.tasks import TASKS
from service.db import rows
from service.db.kinds import StudyKind
from service.db.models import Attempt, Schedule, Study
from service.definitions.stored import read_definition, read_preparation
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_trials
from service.optuna_store.values import TrialValues
from service.states import AttemptState, StudyState
from service.warm_start.evaluated import comparable


@dataclass(frozen=True, kw_only=True)
class Source:
    study: Study | None
    """None: a schedule of which no sweep has completed yet."""
    words: str
    schedule: bool = False
    """Whether a schedule was named."""
    earlier: tuple[Study, ...] = ()
    """The schedule's sweeps before `study` whose numbers mean the same as its numbers: what they have
    evaluated, it has not evaluated again."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A completed trial of a source."""

    trial: TrialValues
    definition: StudyDefinition
    """Its study's."""
    name: str
    """The trial's, in words."""


def find(session: Session, ref: str, *, sweep: Study | None = None) -> Source | None:
    """The study of this id or name, else a schedule's latest sweep that completed; None: neither exists.

    The name of a sweep's own schedule always refers to that schedule, even if a study has the same name, and
    even if the schedule was renamed or removed since.
    """
    schedule = rows.find(session, Schedule, ref)
    schedule_id, name = (schedule.id, schedule.name) if schedule is not None else (None, ref)
    if sweep is not None and sweep.schedule_name == ref:
        schedule_id, name = sweep.schedule_id, ref
    if schedule_id is None or sweep is None or sweep.schedule_id != schedule_id:
        study = rows.find(session, Study, ref)
        if study is not None and (sweep is None or study.id != sweep.id):
            return Source(study=study, words=f"the study {study.name!r}")
    if schedule_id is None:
        return None
    completed = select(Study).where(
        Study.schedule_id == schedule_id,
        Study.kind == StudyKind.SEARCH,
        Study.state == StudyState.COMPLETED,
        Study.removing_at.is_(None),
        # One that found everything evaluated has no trial.
        Study.id.in_(select(Attempt.study_id).where(Attempt.state == AttemptState.COMPLETED)),
    )
    if sweep is not None:
        completed = completed.where(Study.id != sweep.id)
    sweeps = session.scalars(completed.order_by(Study.fired_for.desc(), Study.created_at.desc())).all()
    if not sweeps:
        words = f"the schedule {name!r} has no other completed sweep yet"
        return Source(study=None, words=words, schedule=True)
    latest = sweeps[0]
    earlier = tuple(other for other in sweeps[1:] if comparable(other, latest))
    more = f"its sweep {latest.name!r}"
    if earlier:
        more += f" and {len(earlier)} before it on the same data"
    return Source(study=latest, words=f"the schedule {name!r} ({more})", schedule=True, earlier=earlier)


def differences(
    earlier: StudyDefinition, now: StudyDefinition, *, ignored: Collection[str] = ()
) -> list[str]:
    """In what two studies differ, so that their values cannot be compared, in words. `ignored` keys may."""
    if earlier.task != now.task:
        return [other_task(earlier, now)]
    there, here = _compared(earlier), _compared(now)
    return [
        f"{key} is {there.get(key)} there and {here.get(key)} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key) and key not in ignored
    ]


def paths_of_each_sweep(session: Session, study: Study, earlier: Study) -> list[str]:
    """`data.train`, `data.eval`, where the schedule of two sweeps gives each a file of its own, by `{date}`,
    say: their names need not be the same, as the content under one name need not."""
    if study.schedule_id is None or study.schedule_id != earlier.schedule_id:
        return []
    schedule = session.get(Schedule, study.schedule_id)
    data = {} if schedule is None else schedule.definition.get("data", {})
    return [
        f"data.{part}" for part in ("train", "eval") if isinstance(data.get(part), str) and "{" in data[part]
    ]


def other_task(earlier: StudyDefinition, now: StudyDefinition) -> str:
    """Of studies whose tasks differ."""
    return f"task is {earlier.task} there and {now.task} here"


def _compared(definition: StudyDefinition) -> dict[str, Any]:
    """What a value depends on, by its key: all but the recipe and the rungs."""
    metric = definition.objective.metric
    # Not dumped, because that leaves out some keys at their default.
    values: dict[str, Any] = {f"metrics.{metric}": definition.metrics.get(metric)}
    for section in ("model", "data", "objective"):
        values |= {f"{section}.{key}": value for key, value in vars(getattr(definition, section)).items()}
    generate = definition.evaluation.generate
    if metric in TASKS[definition.task].generated and generate is not None:
        values |= {f"evaluation.generate.{k}": value for k, value in vars(generate).items() if k != "when"}
    return {key: to_jsonable_python(value) for key, value in values.items()}


def changed_since(earlier: Study, prepared: Preparation) -> list[str]:
    """What names the same content no more as when an earlier study was prepared."""
    before = read_preparation(earlier).fingerprints
    now = prepared.fingerprints
    return [name for name in before.keys() & now.keys() if before[name] != now[name]]


def best_first(storage: Storage, source: Source, definition: StudyDefinition) -> list[Result]:
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
            Result(trial=trial, definition=read, name=_name(trial, study, age)),
        )
        for age, (study, read) in enumerate(studies)
        for trial in read_trials(storage, study.name)
        if trial.value is not None and trial.feasible and trial.searched
    ]
    return [result for *_, result in sorted(found, key=lambda ranked: ranked[:3])]


def _name(trial: TrialValues, study: Study, age: int) -> str:
    return f"{trial.number}" if age == 0 else f"{trial.number} of {study.name}"
