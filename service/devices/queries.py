"""Reading which workers have trials, and which GPUs were put aside."""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import Attempt, Device, Study
from service.devices.schemas import DeviceView, Fleet, WorkerTrial, WorkerView
from service.errors import NotFound
from service.states import LIVE_ATTEMPT_STATES

_DEVICE_ID = re.compile(r"[!-~]{1,200}")
"""What a GPU's id can look like; nothing else is looked up."""


def show_workers(session: Session) -> Fleet:
    """Every worker that has a trial, and every GPU that was ever put aside."""
    live = (
        select(Attempt, Study.name)
        .join(Study, Study.id == Attempt.study_id)
        .where(Attempt.state.in_(LIVE_ATTEMPT_STATES))
        .order_by(Attempt.id)
    )
    by_worker: dict[str, list[tuple[Attempt, str]]] = {}
    for attempt, study in session.execute(live):
        by_worker.setdefault(attempt.worker_id, []).append((attempt, study))
    devices = session.scalars(select(Device).order_by(Device.put_aside_at.desc(), Device.id)).all()
    listed = sorted(devices, key=lambda device: device.put_aside_at is None)  # stable
    return Fleet(
        workers=[_worker(worker_id, attempts) for worker_id, attempts in sorted(by_worker.items())],
        devices=[DeviceView.model_validate(device) for device in listed],
    )


def _worker(worker_id: str, attempts: list[tuple[Attempt, str]]) -> WorkerView:
    first, study = attempts[0]
    return WorkerView(
        id=worker_id,
        study=study,
        device=next((a.device for a, _ in attempts if a.device is not None), None),
        device_id=first.device_id,
        gpus=first.gpus,
        trials=[WorkerTrial(number=a.trial_number, attempt=a.ordinal, state=a.state) for a, _ in attempts],
        since=min(a.dispatched_at for a, _ in attempts),
    )


def get_device(session: Session, device_id: str, *, lock: bool = False) -> Device:
    """The GPU of this id, if it was ever put aside. Raises `NotFound`."""
    found = None
    if _DEVICE_ID.fullmatch(device_id):
        found = session.get(Device, device_id, with_for_update=lock or None)
    if found is None:
        raise NotFound(
            f"No GPU {device_id[:200]!r} was ever put aside. `nightsweep workers` lists those that were."
        )
    return found
