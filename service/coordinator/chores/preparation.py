"""What happens to a study before its first trial: a learning-rate range test, then what earlier ones left.

A chore of the coordinator's loop, beside schedules and leases. A study that asks for stages stays queued,
and nobody takes its lease, until they are done and `Study.preparation` is written; from then on it is like
any other. Each step is one transaction that begins by looking whether it is still to be done, so a crash
anywhere, or another coordinator beside this one, changes nothing:

    queued ── makes its range test ── waits for it ── reads it ── earlier sweeps ── warm start ── preparation

A range test is a study of its own kind, with trials and a lease like any other. Once it has completed, what
it found is drawn on its dashboard page and written down in its own `preparation`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from pydantic import ValidationError
from sqlalchemy import Select, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.errors import machine_fault
from search_spaces.preparation import Preparation
from search_spaces.range_tests.analysis import Corner, Narrowed, narrow, propose
from search_spaces.range_tests.derivation import allowed_bounds
from search_spaces.sampling.plan import planned_trials, prepared_space
from service.coordinator.chores.fingerprints import FingerprintReader, Fingerprints
from service.coordinator.leases import waits_for_stages
from service.coordinator.policy.waiting import WAITING
from service.dashboard.figures import save_figure
from service.db.database import Database
from service.db.kinds import StudyKind
from service.db.models import Schedule, Study
from service.db.transitions import advance_study, append_event, start
from service.definitions.stored import require_definition
from service.optuna_store.storage import Storage, StorageInternalError
from service.optuna_store.studies import ensure_study
from service.range_tests.commands import make
from service.range_tests.figure import draw
from service.range_tests.sweeps import read_corners
from service.states import READING, TERMINAL_STUDY_STATES, StudyState
from service.warm_start.evaluated import Evaluated, best_of_all, find_evaluated
from service.warm_start.transfer import WarmStartError, resolve

log = logging.getLogger(__name__)

FIGURE = "learning-rate-range-test"
"""Its name on the dashboard."""
RANGE_TEST = "range_test"
"""The kind of event that says what becomes of a study's range test, and what it found."""
WARM_START = "warm_start"
"""The kind of event that says what was taken over from an earlier study."""
EARLIER_SWEEPS = "earlier_sweeps"
"""The kind of event that says what is not evaluated again, or why everything is."""


def advance_stages(database: Database, storage: Storage, reader: FingerprintReader) -> None:
    """Take every study's stages as far as they go now.

    Args:
        database: the service's.
        storage: Optuna's.
        reader: says whether the data of a schedule's sweep is what it was.
    """
    with database.read() as session:
        orphans = session.scalars(_orphans()).all()
        found = session.scalars(_unread_range_tests()).all()
        waiting = session.scalars(_waiting()).all()
    reader.forget_all_but(waiting)
    for study_id in orphans:
        _guarded(database, study_id, lambda study_id: _cancel_orphan(database, study_id))
    for study_id in found:
        _guarded(database, study_id, lambda study_id: _read_range_test(database, storage, study_id))
    for study_id in waiting:
        _guarded(database, study_id, lambda study_id: _advance(database, storage, reader, study_id))


def _guarded(database: Database, study_id: str, step: Callable[[str], None]) -> None:
    """Run one study's step. An internal error fails that study and leaves the others alone."""
    try:
        step(study_id)
    except (SQLAlchemyError, StorageInternalError):
        raise  # every study's trouble
    except ValidationError as error:
        _fail(database, study_id, f"this version cannot read the study's definition: {error}")
    except Exception as error:
        if machine_fault(error) is not None:
            raise  # every study's, and no fault of any
        log.exception("study %s met an internal error", study_id)
        what = f"{type(error).__name__}: {error}"
        _fail(database, study_id, f"internal error, see the coordinator's log: {what}")


def _fail(database: Database, study_id: str, reason: str) -> None:
    def fail(session: Session) -> None:
        study = _locked(session, study_id)
        if study.state in (StudyState.QUEUED, StudyState.PAUSED):
            advance_study(session, study, StudyState.FAILED, reason)
        elif study.preparation is None:  # a range test that has ended, and would be read again for ever
            study.preparation = Preparation(notes=(reason,)).model_dump(mode="json")
            append_event(session, study.id, RANGE_TEST, reason)

    database.transact(fail)


# -- range tests that have ended ----------------------------------------------------------------------


@cache
def _unread_range_tests() -> Select[str]:
    return select(Study.id).where(
        Study.kind == StudyKind.RANGE_TEST,
        Study.state == StudyState.COMPLETED,
        Study.preparation.is_(None),
    )


def _read_range_test(database: Database, storage: Storage, study_id: str) -> None:
    """Draw what a range test found, then write it down."""
    with database.read() as session:
        study = session.get_one(Study, study_id)
        corners, narrowed, found = _conclude(session, study)
        task = study.definition["task"]
    bounds = narrowed.bounds if narrowed.concluded else None
    save_figure(storage, study.name, draw(corners, bounds, "Learning-rate range test", task), FIGURE)

    def write_down(session: Session) -> None:
        study = _locked(session, study_id)
        if study.preparation is not None:
            return
        notes = (narrowed.note, found)
        study.preparation = Preparation(learning_rate_bounds=bounds, notes=notes).model_dump(mode="json")
        append_event(session, study.id, RANGE_TEST, f"{narrowed.note}; {found}")

    database.transact(write_down)


def _conclude(session: Session, study: Study) -> tuple[list[Corner], Narrowed, str]:
    definition = require_definition(study)
    test = definition.search.learning_rate_range_test
    assert test is not None  # a range test always has one
    corners = read_corners(session, study, definition)
    proposal = propose(corners)
    return corners, narrow(proposal.bounds, test.within, widen=test.widen), proposal.note


# -- studies that wait --------------------------------------------------------------------------------


@cache
def _waiting() -> Select[str]:
    query = select(Study.id).where(
        Study.state == StudyState.QUEUED, ~Study.cancel_requested, waits_for_stages()
    )
    return query.order_by(Study.created_at, Study.id)


def _advance(database: Database, storage: Storage, reader: FingerprintReader, study_id: str) -> None:
    start = database.transact(lambda session: _starting_point(session, study_id))
    if start is None:
        return
    definition, test = start
    with database.read() as session:
        study = session.get_one(Study, study_id)
        sweep, reason = study.schedule_id is not None, study.reason
    fingerprints = reader.of(study_id, definition) if sweep else Fingerprints()
    if fingerprints is not None:
        _prepare(database, storage, study_id, definition, test, fingerprints)
    elif reason != READING:
        database.transact(lambda session: _say_what_is_read(session, study_id))


def _say_what_is_read(session: Session, study_id: str) -> None:
    study = _locked(session, study_id)
    if _still_waits(study):
        study.reason = READING
        append_event(session, study.id, WAITING, READING)


def _starting_point(session: Session, study_id: str) -> tuple[StudyDefinition, Study | None] | None:
    """What the study starts from: its definition and its range test, if it has one, which has been read.

    None while it waits for the range test, which is made here, or waits no longer.
    """
    study = _locked(session, study_id)
    if not _still_waits(study):
        return None
    definition = require_definition(study)
    if definition.search.learning_rate_range_test is None:
        return definition, None
    if study.range_test_id is None:
        _begin_range_test(session, study, definition)
        return None
    test = session.get_one(Study, study.range_test_id)
    if test.state not in TERMINAL_STUDY_STATES:
        return None
    if test.state != StudyState.COMPLETED:
        reason = f"its range test {test.name!r} was {test.state}: {test.reason}"
        if test.state == StudyState.FAILED:
            reason = f"its range test {test.name!r} failed: {test.reason}"
        advance_study(session, study, StudyState.FAILED, reason)
        return None
    return None if test.preparation is None else (definition, test)


def _begin_range_test(session: Session, study: Study, definition: StudyDefinition) -> None:
    test = make(session, definition, f"the first stage of the study {study.name!r}", owner=study.owner)
    study.range_test_id = test.id
    study.reason = f"waiting for its learning-rate range test {test.name}"
    message = f"the range test {test.name} sweeps its learning rate first"
    append_event(session, study.id, RANGE_TEST, message)


def _prepare(
    database: Database,
    storage: Storage,
    study_id: str,
    definition: StudyDefinition,
    test: Study | None,
    fingerprints: Fingerprints,
) -> None:
    """Write down what the study starts from, once. The figure comes first: it may be drawn twice."""
    bounds: tuple[float, float] | None = None
    swept: list[str] = []
    with database.read() as session:
        study = session.get_one(Study, study_id)
        if test is not None:
            corners, _, found = _conclude(session, test)
            bounds, note = _narrowed(definition, corners)
            by = " by" if bounds is not None else ";"
            swept = [f"{note}{by} the range test {test.name}: {found}"]
        prepared = Preparation(learning_rate_bounds=bounds, fingerprints=fingerprints.known)
        evaluated, left_out = _left_out(session, storage, study, definition, prepared, fingerprints)
        prepared = prepared.model_copy(
            update={"evaluated": evaluated.digests, "evaluated_basis": evaluated.basis}
        )
        over = None
        if evaluated.digests and planned_trials(definition, prepared) == 0:
            over = _nothing_left(session, storage, study, definition, prepared)
        try:
            warm = resolve(session, storage, study, definition, prepared)
        except WarmStartError as error:
            warm = None
            reason = str(error)
    if test is not None:
        ensure_study(storage, study.name, definition, study_id=study.id)
        title = f"Learning-rate range test {test.name}"
        save_figure(storage, study.name, draw(corners, bounds, title, definition.task), FIGURE)

    def write_down(session: Session) -> None:
        study = _locked(session, study_id)
        if not _still_waits(study):
            return
        for note in swept:
            append_event(session, study.id, RANGE_TEST, note)
        if warm is None:
            advance_study(session, study, StudyState.FAILED, reason)
            return
        for note in left_out:
            append_event(session, study.id, EARLIER_SWEEPS, note)
        for note in warm.notes:
            append_event(session, study.id, WARM_START, note)
        notes = (*swept, *left_out, *warm.notes)
        found = {"enqueued": warm.enqueued, "prior": warm.prior, "notes": notes}
        study.preparation = prepared.model_copy(update=found).model_dump(mode="json")
        study.reason = "waiting for a coordinator"
        if over is not None:
            start(session, study, "a coordinator has started it")
            advance_study(session, study, StudyState.COMPLETED, over)

    database.transact(write_down)


def _left_out(
    session: Session,
    storage: Storage,
    study: Study,
    definition: StudyDefinition,
    prepared: Preparation,
    fingerprints: Fingerprints,
) -> tuple[Evaluated, list[str]]:
    """What a sweep does not evaluate again, and what to say of it."""
    if study.schedule_id is None:
        return Evaluated(), []
    schedule = session.get(Schedule, study.schedule_id)
    if schedule is not None and schedule.repeat_configurations:
        return Evaluated(), ["nothing is left out: the schedule has repeat_configurations"]
    if fingerprints.unknown:
        why = "; ".join(fingerprints.unknown)
        return Evaluated(), [
            f"nothing is left out, since it is not known whether its data has changed: {why}"
        ]
    found = find_evaluated(session, storage, study, definition, prepared)
    notes = []
    if found.changed:
        has = "has" if len(found.changed) == 1 else "have"
        notes.append(
            f"{' and '.join(found.changed)} {has} changed since the sweep before: what was evaluated on the "
            "other content may be evaluated again"
        )
    if found.digests:
        count = len(found.digests)
        what, them = ("1 configuration is", "it") if count == 1 else (f"{count} configurations are", "them")
        notes.append(
            f"{what} left out: earlier sweeps of the schedule have evaluated {them} on the same data"
        )
    return found, notes


def _nothing_left(
    session: Session,
    storage: Storage,
    study: Study,
    definition: StudyDefinition,
    prepared: Preparation,
) -> str:
    """Why a sweep ends without a trial."""
    space = prepared_space(definition, prepared)
    grid = definition.search.algorithm == "grid"
    size = space.grid_size() if grid else space.size()
    where = f"{size} points of the grid" if grid else f"{size} configurations of the search space"
    reason = (
        f"nothing is left to evaluate: earlier sweeps of the schedule {study.schedule_name!r} have evaluated "
        f"all {where} on the same data"
    )
    best = best_of_all(session, storage, study, definition, prepared)
    if best is None:
        return reason
    name, trial = best
    value = f"{definition.objective.metric} {trial.value:.6g}"
    return f"{reason}; the best of them, {value}, is trial {trial.number} of {name!r}"


def _narrowed(definition: StudyDefinition, corners: list[Corner]) -> tuple[tuple[float, float] | None, str]:
    """The study's bounds, None where they stay, and what to say of them."""
    test, allowed = definition.search.learning_rate_range_test, allowed_bounds(definition)
    narrowed = narrow(propose(corners).bounds, allowed, widen=test is not None and test.widen)
    if not narrowed.concluded or narrowed.bounds is None or narrowed.bounds == allowed:
        return None, narrowed.note
    try:
        definition.search.space.narrowed("learning_rate", *narrowed.bounds)
    except (KeyError, ValueError) as error:  # choices, or steps of which fewer than two are left
        return None, f"learning_rate stays as it is ({error})"
    return narrowed.bounds, narrowed.note


def _still_waits(study: Study) -> bool:
    return study.state == StudyState.QUEUED and not study.cancel_requested and study.preparation is None


def _locked(session: Session, study_id: str) -> Study:
    return session.scalars(select(Study).where(Study.id == study_id).with_for_update()).one()


# -- studies that no longer wait ----------------------------------------------------------------------


@cache
def _orphans() -> Select[str]:
    """Range tests under way whose study has ended, or is to be."""
    ended = select(Study.range_test_id).where(
        Study.range_test_id.is_not(None),
        Study.cancel_requested | Study.state.in_(TERMINAL_STUDY_STATES),
    )
    return select(Study.id).where(
        Study.id.in_(ended), Study.state.not_in(TERMINAL_STUDY_STATES), ~Study.cancel_requested
    )


def _cancel_orphan(database: Database, study_id: str) -> None:
    def cancel(session: Session) -> None:
        test = _locked(session, study_id)
        if test.cancel_requested or test.state in TERMINAL_STUDY_STATES:
            return
        parent = session.scalars(select(Study.name).where(Study.range_test_id == test.id)).first()
        test.cancel_requested = True
        message = f"the study {parent!r}, of which it is the first stage, has ended"
        append_event(session, test.id, "cancel_requested", message)

    database.transact(cancel)
