"""Removing the artifacts that nobody needs any more.

A plan is made from what lies there, and nothing but what workers make is in it. Adapters are first marked in
SQL as not kept and then removed, so a sweep that is cut short anywhere leaves adapters that nobody is sent
to, and the next sweep finds them again. Studies that have not ended are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from search_spaces.values.artifact_layout import ADAPTERS, CHECKPOINT
from search_spaces.values.artifact_urls import join
from service.artifacts.layout import Folder, Place
from service.artifacts.retention import referenced, trials_to_keep, why_removed
from service.db import reigns, trials
from service.db.database import Database, database_now
from service.db.models import Attempt, Study
from service.definitions.stored import read_definition
from service.errors import Unavailable
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_trials
from service.states import TERMINAL_STUDY_STATES

UNKNOWN_AFTER_SECONDS = 24 * 3600.0
"""A folder of a study that the database does not know is left alone while anything in it is younger."""

REFUSALS = (OSError, Unavailable)
"""What a place raises that does not answer, or does not let something be removed."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One folder that goes."""

    place: str
    """Its path or URL."""
    study_id: str
    study: str | None
    """The study's name; None: the database does not know it."""
    folder: Folder | None
    """None: all of the study's."""
    bytes: int
    reason: str

    @property
    def kind(self) -> str:
        """`adapter`, `checkpoint`, `unfinished` or `study`."""
        if self.folder is None:
            return "study"
        if self.folder.name == CHECKPOINT:
            return "checkpoint"
        return "adapter" if self.folder.name in ADAPTERS else "unfinished"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A removal and where it is done."""

    removal: Removal
    at: Place


def plan(
    database: Database,
    storage: Storage,
    places: Sequence[Place],
    *,
    keep: int | None,
    studies: Iterable[str] | None = None,
) -> Iterator[Planned]:
    """What of the studies that have ended is not needed any more. Changes nothing.

    Args:
        database: the service's.
        storage: Optuna's, with the values that say which trials are the best.
        places: where artifacts may lie.
        keep: how many trials' adapters to keep of each study; None: all.
        studies: ids of those to look at; None: all that have something in one of the places.

    Raises:
        OSError, Unavailable: a place cannot be read.
    """
    for place in places:
        there = set(place.studies())
        for study_id in sorted(there if studies is None else there.intersection(studies)):
            with database.read() as session:
                yield from _plan_study(session, storage, place, study_id, keep)


def plan_unknown(database: Database, places: Sequence[Place]) -> Iterator[Planned]:
    """Folders of studies that the database does not know and in which nothing changed for a day.

    Raises:
        OSError, Unavailable: a place cannot be read.
    """
    for place in places:
        for study_id in place.studies():
            with database.read() as session:
                if session.get(Study, study_id) is not None:
                    continue
            size, age = place.size_and_age(study_id)
            if age is not None and age >= UNKNOWN_AFTER_SECONDS:
                yield Planned(
                    at=place,
                    removal=Removal(
                        place=join(place.shown, study_id),
                        study_id=study_id,
                        study=None,
                        folder=None,
                        bytes=size,
                        reason="the database does not know this study",
                    ),
                )


def carry_out(
    database: Database, planned: Sequence[Planned], *, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Removal, str | None]]:
    """Removes what was planned, and says of each whether that was refused.

    Args:
        database: the service's, where adapters are marked before they go.
        planned: by `plan` or `plan_unknown`.
        stop: asked before each removal.
    """
    spared = _mark(database, [each.removal for each in planned])
    for each in planned:
        if stop():
            return
        if each.removal in spared:
            continue
        try:
            if each.removal.folder is None:
                each.at.remove_study(each.removal.study_id)
            else:
                each.at.remove(each.removal.study_id, each.removal.folder)
        except REFUSALS as error:
            yield each.removal, str(error)
        else:
            yield each.removal, None


def _plan_study(
    session: Session, storage: Storage, place: Place, study_id: str, keep: int | None
) -> Iterator[Planned]:
    study = session.get(Study, study_id)
    if study is None or study.state not in TERMINAL_STUDY_STATES:
        return
    definition = read_definition(study)
    if definition is None:
        keep = None  # another version's: this one cannot say which are the best
    kept, adapters = frozenset[int](), set[Folder]()
    if keep is not None and definition is not None:
        kept = trials_to_keep(definition, read_trials(storage, study.name), keep)
        kept |= reigns.kept_trials(session, study_id)
        for number in kept:
            rows = session.scalars(
                select(Attempt.outcome)
                .where(Attempt.study_id == study_id, Attempt.trial_number == number)
                .order_by(Attempt.ordinal)
            )
            adapters |= referenced(study_id, rows)
    for folder, size in sorted(place.folders(study_id).items()):
        reason = why_removed(folder, keep=keep, trials=kept, adapters=adapters)
        if reason is not None:
            yield Planned(
                at=place,
                removal=Removal(
                    place=join(place.shown, study_id, str(folder.trial), str(folder.ordinal), folder.name),
                    study_id=study_id,
                    study=study.name,
                    folder=folder,
                    bytes=size,
                    reason=reason,
                ),
            )


def _mark(database: Database, removals: Sequence[Removal]) -> set[Removal]:
    """Says in SQL that adapters are not kept: of every attempt whose outcome leads to one of them.

    Returns:
        Those that are kept after all: their trial has become a champion since this was planned.
    """
    spared: set[Removal] = set()
    gone: dict[str, set[Folder]] = {}
    for removal in removals:
        if removal.kind == "adapter" and removal.folder is not None:
            gone.setdefault(removal.study_id, set()).add(removal.folder)
    for study_id, folders in gone.items():
        kept = database.transact(lambda session, s=study_id, f=folders: _mark_study(session, s, f))  # type: ignore[misc]
        spared |= {r for r in removals if r.study_id == study_id and r.folder in kept}
    return spared


def _mark_study(session: Session, study_id: str, folders: set[Folder]) -> set[Folder]:
    """Mark all but a champion's; those."""
    # Locked before a look at the champions: whoever promotes one of these trials locks them, too.
    rows = session.execute(
        select(Attempt.id, Attempt.outcome)
        .where(
            Attempt.study_id == study_id,
            Attempt.trial_number.in_({folder.trial for folder in folders}),
            Attempt.adapters_swept_at.is_(None),
        )
        .with_for_update()
    ).all()
    reigning = reigns.kept_trials(session, study_id)
    spared = {folder for folder in folders if folder.trial in reigning}
    folders = folders - spared
    marked = [row.id for row in rows if referenced(study_id, [row.outcome]) & folders]
    if marked:
        session.execute(
            update(Attempt).where(Attempt.id.in_(marked)).values(adapters_swept_at=database_now(session))
        )
        trials.touch(session, study_id, {folder.trial for folder in folders})
    return spared
