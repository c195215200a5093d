"""Promoting a champion by hand, and rolling back to the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import shown, unknown_keys
from search_spaces.preparation import NOTHING
from search_spaces.values.numbers import read_int
from service.champions.lineage import lineage_of, misfit
from service.champions.queries import reign_of
from service.db import reigns
from service.db.kinds import StudyKind
from service.db.models import Attempt, Reign, Schedule, Study
from service.definitions.stored import read_definition, read_preparation
from service.errors import ChampionRefused, Invalid, NotFound
from service.rest.dependencies import MAX_ID
from service.states import AttemptState
from service.studies.queries import get_study
from service.trials.records import read

PROMOTE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["study", "trial"],
    "properties": {
        "study": {"type": "string", "description": "The study's id or name"},
        "trial": {"type": "integer", "minimum": 0, "maximum": MAX_ID, "description": "The trial's number"},
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """Whom somebody wants as champion."""

    study: str
    trial: int


def read_promotion(document: Any) -> Promotion:
    """From what was sent. Raises `Invalid` with every fault at once."""
    known = list(PROMOTE_SCHEMA["properties"])
    if not isinstance(document, dict):
        keys = f"the keys {', '.join(known)}"
        fault = Fault(path="", value=shown(document), message="must be a mapping", allowed=keys)
        raise Invalid("The body", [fault])
    faults = unknown_keys(document, known, "")
    faults += [Fault(path=k, value=None, message="is required") for k in known if k not in document]
    study, trial = document.get("study"), _number(document.get("trial"))
    if "study" in document and not (isinstance(study, str) and 0 < len(study) <= 200):
        allowed = "the name or id of a study"
        faults.append(Fault(path="study", value=shown(study), message="is not valid", allowed=allowed))
    if "trial" in document and (trial is None or not 0 <= trial <= MAX_ID):
        allowed = f"a whole number from 0 to {MAX_ID}"
        sent = shown(document["trial"])
        faults.append(Fault(path="trial", value=sent, message="is not valid", allowed=allowed))
    if faults:
        raise Invalid("The body", faults)
    return Promotion(study=str(study), trial=int(trial or 0))


def _number(value: Any) -> int | None:
    try:
        return read_int(value)
    except ValueError:
        return None


def promote(session: Session, schedule: Schedule, wanted: Promotion, *, asked_by: str) -> Reign:
    """Make a trial's best adapter the champion, whatever its values are.

    Args:
        session: writes; it has the schedule locked.
        schedule: whose champion.
        wanted: which trial.
        asked_by: whose request it is.

    Raises:
        NotFound: there is no such study or trial.
        ChampionRefused: it has no adapter that the schedule's sweeps could evaluate, or reigns already.
    """
    study = get_study(session, wanted.study)
    what = f"Trial {wanted.trial} of the study {study.name!r}"
    if study.deleted_at is not None:
        raise ChampionRefused(f"{what} cannot be the champion: the study is deleted; restore it first.")
    definition, now = read_definition(study), read_definition(schedule)
    if definition is None or now is None or study.kind != StudyKind.SEARCH:
        raise ChampionRefused(f"{what} cannot be the champion: the study is no search of this version.")
    adapter = _adapter(session, study, wanted.trial, what)
    [record] = read(session, study, [wanted.trial]).records
    if record.recipe is None:
        raise ChampionRefused(f"{what} cannot be the champion: its recipe is not known.")
    lineage = lineage_of(definition, record.recipe, read_preparation(study))
    _require_fit(lineage, now, schedule, what)
    before = reigns.reigning(session, schedule.id)
    if before is not None and (before.study_id, before.trial_number) == (study.id, wanted.trial):
        raise ChampionRefused(f"{what} is the champion of {schedule.name!r} already.")
    why = f"promoted by {asked_by!r}"
    return reigns.enthrone(
        session,
        schedule,
        study_id=study.id,
        study_name=study.name,
        trial_number=wanted.trial,
        adapter=adapter,
        lineage=lineage,
        why=why,
        ended_why=f"trial {wanted.trial} of {study.name} was {why}",
        promoted_by=asked_by,
    )


def _adapter(session: Session, study: Study, number: int, what: str) -> str:
    """Where a completed trial's best adapter is. Locks its attempts, so that it is not swept meanwhile."""
    of_trial = Attempt.study_id == study.id, Attempt.trial_number == number
    attempts = session.scalars(select(Attempt).where(*of_trial).order_by(Attempt.ordinal).with_for_update())
    last = next(iter(reversed(attempts.all())), None)
    if last is None:
        raise NotFound(f"{what} does not exist, or has not started.")
    if last.state != AttemptState.COMPLETED:
        raise ChampionRefused(f"{what} cannot be the champion: it is {last.state}, not completed.")
    adapter = (last.outcome or {}).get("best_adapter_dir")
    if not isinstance(adapter, str):
        raise ChampionRefused(f"{what} cannot be the champion: it left no adapter.")
    _require_there(last, what)
    return adapter


def _require_there(attempt: Attempt, what: str) -> None:
    if (swept := attempt.adapters_swept_at) is not None:
        when = f"{swept:%Y-%m-%d}"
        raise ChampionRefused(f"{what} cannot be the champion: its adapter was removed on {when}.")


def _require_fit(lineage: dict[str, Any], now: StudyDefinition, schedule: Schedule, what: str) -> None:
    unfit = misfit(lineage, now, NOTHING)
    if unfit is not None:
        raise ChampionRefused(f"{what} cannot be the champion of {schedule.name!r}: {unfit}.")


def roll_back(session: Session, schedule: Schedule, *, asked_by: str) -> Reign:
    """Bring back the champion before the present one; again: the one before that.

    Args:
        session: writes; it has the schedule locked.
        schedule: whose champion.
        asked_by: whose request it is.

    Raises:
        NotFound: the schedule has no champion.
        ChampionRefused: there is none before it, or none that the schedule's sweeps could evaluate.
    """
    present = reign_of(session, schedule)
    earlier = next(iter(reigns.predecessors(session, present)), None)
    if earlier is None:
        raise ChampionRefused(f"The schedule {schedule.name!r} has had no champion before the present one.")
    what = f"Trial {earlier.trial_number} of the study {earlier.study_name!r}"
    of_trial = Attempt.study_id == earlier.study_id, Attempt.trial_number == earlier.trial_number
    attempts = select(Attempt).where(*of_trial).order_by(Attempt.ordinal.desc()).with_for_update()
    last = session.scalars(attempts.limit(1)).one_or_none()
    if last is None:
        raise ChampionRefused(f"{what} cannot be the champion again: it has been deleted.")
    _require_there(last, what)
    now = read_definition(schedule)
    if now is not None:
        _require_fit(earlier.lineage, now, schedule, what)
    why = f"rolled back by {asked_by!r}"
    return reigns.enthrone(
        session,
        schedule,
        study_id=earlier.study_id,
        study_name=earlier.study_name,
        trial_number=earlier.trial_number,
        adapter=earlier.adapter,
        lineage=earlier.lineage,
        why=why,
        ended_why=f"{why} to trial {earlier.trial_number} of {earlier.study_name}",
        promoted_by=asked_by,
        restores=earlier.restores or earlier.id,
    )
