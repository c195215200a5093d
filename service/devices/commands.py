"""Changing what the workers may use."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import Device
from service.devices.queries import get_device


def restore_device(session: Session, device_id: str) -> Device:
    """Give a GPU back to the workers; what happened on it before does not count any more.

    One that has been given back already stays as it is. Raises `NotFound`.
    """
    device = get_device(session, device_id, lock=True)
    if device.put_aside_at is not None:
        device.put_aside_at = None
        device.restored_at = database_now(session)
    return device
