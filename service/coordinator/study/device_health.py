"""GPUs on which workers die again and again: found by the attempts that were lost there, and put aside.

A single death may be the trial's fault. The GPU is at fault as soon as no two trials can explain all the
deaths on it since it last trained a trial to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import Attempt, Device, Study
from service.db.transitions import append_event
from service.states import AttemptState, LossCause

log = logging.getLogger(__name__)

DEVICE_PUT_ASIDE = "device_put_aside"
"""The kind of event that says that a GPU gets no trials any more."""

_Trial = tuple[str, int]
"""A study's id and a trial's number; `_LOADING` in place of the number where the trial had not begun."""
_LOADING = -1
"""All trials of a study load the same, so what dies meanwhile is explained by the study, as by one trial."""


def devices_aside(session: Session) -> frozenset[str]:
    """The GPUs that get no trials."""
    return frozenset(session.scalars(select(Device.id).where(Device.put_aside_at.is_not(None))))


def put_aside_if_bad(session: Session, device_id: str, *, study_id: str) -> bool:
    """Put a GPU aside on which a worker has just died, if it was not the first. Whether that was done.

    Args:
        session: writes.
        device_id: as in `Attempt.device_id`.
        study_id: in whose history it is told.
    """
    device = session.get(Device, device_id, with_for_update=True)
    if device is not None and device.put_aside_at is not None:
        return False
    deaths = _deaths_since(session, device_id, None if device is None else device.restored_at)
    if not no_two_explain(deaths):
        return False
    if device is None:
        device = Device(id=device_id)
        try:
            with session.begin_nested():
                session.add(device)
        except IntegrityError:  # put aside in this moment for another study's worker
            return False
    device.put_aside_at = database_now(session)
    device.reason = (
        f"{len(deaths)} workers died on it, and no trial ended on it in between: {_named(session, deaths)}"
    )
    message = f"the GPU {device_id} gets no more trials: {device.reason}"
    append_event(session, study_id, DEVICE_PUT_ASIDE, message)
    log.warning(message)
    return True


def no_two_explain(deaths: Sequence[frozenset[_Trial]]) -> bool:
    """Whether there are no two trials such that one of them was there at every death.

    Three trials that each killed a worker by themselves are more than two. A pack that dies is one death,
    whichever of its trials caused it. If that trial dies again by itself, it explains both deaths.

    Args:
        deaths: the trials that each of the workers had that died.
    """
    for first in deaths[0] if deaths else ():
        others = [death for death in deaths if first not in death]
        if not others or any(all(second in death for death in others) for second in others[0]):
            return False
    return bool(deaths)


def _deaths_since(session: Session, device_id: str, restored_at: datetime | None) -> list[frozenset[_Trial]]:
    """The trials of each worker that died on a GPU after it last trained one to its end."""
    of_device = Attempt.device_id == device_id
    trained = select(func.max(Attempt.ended_at)).where(
        of_device,
        Attempt.state.in_((AttemptState.COMPLETED, AttemptState.PRUNED)),
        Attempt.outcome.is_not(None),  # none: the pruner's word outlived the worker
    )
    good_until = max(filter(None, (session.scalars(trained).one(), restored_at)), default=None)
    lost = select(Attempt.worker_id, Attempt.study_id, Attempt.trial_number, Attempt.started_at).where(
        of_device, Attempt.loss_cause == LossCause.WORKER_DIED
    )
    if good_until is not None:
        lost = lost.where(Attempt.ended_at > good_until)
    by_worker: dict[str, set[_Trial]] = {}
    for worker_id, study_id, number, started_at in session.execute(lost.order_by(Attempt.id)):
        explanation = study_id, _LOADING if started_at is None else number
        by_worker.setdefault(worker_id, set()).add(explanation)
    return [frozenset(trials) for trials in by_worker.values()]


def _named(session: Session, deaths: Sequence[frozenset[_Trial]]) -> str:
    ids = {study_id for death in deaths for study_id, _ in death}
    names = {
        row.id: row.name for row in session.execute(select(Study.id, Study.name).where(Study.id.in_(ids)))
    }
    said = []
    for death in deaths:
        trials = ", ".join(
            f"{names.get(study_id, study_id)}{' while it loaded' if number == _LOADING else f'/{number}'}"
            for study_id, number in sorted(death)
        )
        said.append(trials if len(death) == 1 else f"one of {trials}")
    return "; ".join(said)
