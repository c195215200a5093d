"""Changing what the workers may use."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.database import database_now
from service.fleet.queries import get_device
from service.models import Device


def restore_device(session: Session, device_id: str) -> Device:
    """Give a GPU back to the workers; what happened on it before does not count any more.

    One that has been given back already stays as it is. Raises `NotFound`.
    """
    device = get_device(session, device_id, lock=True)
    if device.put_aside_at is not None:
        device.put_aside_at = None
        device.restored_at = database_now(session)
    return device
