"""The dashboard's list of all studies, made again only when one of them has changed.

The dashboard reads that list at every poll, also for the page of one study. It changes when a study is made
or removed, or an attribute of one is set, and these are few beside the writes of trials.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

from sqlalchemy import column, func, literal_column, select, table, union_all

from service.optuna_store.storage import Storage

MAX_AGE_SECONDS = 30.0
"""Kept for so long at most: an attribute that was replaced by one of the same length leaves no mark."""

_MARKS = (
    ("studies", "study_id", "study_name"),
    ("study_user_attributes", "study_user_attribute_id", "value_json"),
    ("study_system_attributes", "study_system_attribute_id", "value_json"),
)
"""Table, its ids, and what may change in it."""


def change_marker(storage: Storage) -> Any:
    """Differs when a study or an attribute of one was added, removed or replaced by one of another length."""
    parts = []
    for name, key, content in _MARKS:
        rows = table(name, column(key), column(content))
        length = func.coalesce(func.sum(func.length(rows.c[content])), 0)
        newest = func.coalesce(func.max(rows.c[key]), 0)
        parts.append(select(literal_column(f"'{name}'"), func.count(), newest, length).select_from(rows))
    with storage.engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(union_all(*parts)))


class StudyList(Storage):
    """A storage that keeps the list of its studies. Threads share it."""

    _lock: Lock
    _kept: list[Any]
    _marker: Any
    _read_at: float

    @classmethod
    def of(cls, storage: Storage) -> StudyList:
        """The same storage, with the same connections, for the dashboard."""
        listed = cls.__new__(cls)  # not its constructor, which would open another engine
        vars(listed).update(vars(storage))
        listed._lock, listed._kept, listed._marker, listed._read_at = Lock(), [], None, 0.0
        return listed

    def get_all_studies(self) -> Any:
        marker = change_marker(self)
        with self._lock:
            if marker != self._marker or time.monotonic() - self._read_at > MAX_AGE_SECONDS:
                self._kept, self._marker, self._read_at = super().get_all_studies(), marker, time.monotonic()
            return list(self._kept)
