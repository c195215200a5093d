"""Removing a study from Optuna's storage, for good."""

from __future__ import annotations

from sqlalchemy.orm import scoped_session, sessionmaker

from service.optuna_store import fences
from service.optuna_store.storage import Storage
from service.optuna_store.studies import STUDY_ID_ATTR, find_study_number


def remove_study(storage: Storage, name: str, study_id: str) -> None:
    """Remove a study with its trials and its fence. Doing so again changes nothing.

    A coordinator that held the study once and has slept since can write nothing of it: without a fence, no
    lease is the present one (`fences.fenced`).

    Args:
        storage: Optuna's.
        name: the study's.
        study_id: the service's id of it. A study of that name that is another's stays.
    """
    number = find_study_number(storage, name)
    if number is not None:
        if storage.get_study_user_attrs(number).get(STUDY_ID_ATTR, study_id) != study_id:
            return
        # What it reads it then deletes: on SQLite that takes the lock from the start.
        writer = type(storage).__new__(type(storage))
        vars(writer).update(vars(storage))
        writer.scoped_session = scoped_session(sessionmaker(bind=fences.writing(storage)))
        try:
            writer.delete_study(number)
        except KeyError:
            pass  # another coordinator was faster
        finally:
            writer.scoped_session.remove()
    fences.remove(storage, name)
