"""Words that the tables hold beside states, and the REST API shows. Light to import."""

from __future__ import annotations

from enum import StrEnum


class StudyKind(StrEnum):
    """What the trials of a study are."""

    SEARCH = "search"
    RANGE_TEST = "range_test"
    """Sweeps of the learning rate, one trial for each (batch size, rank) corner of a definition's space."""


class Overlap(StrEnum):
    """What a schedule does at its time when an earlier sweep of it is queued or running still."""

    SKIP = "skip"
    ALLOW = "allow"


class ScheduleEventKind(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHECKED = "unchecked"
    SKIPPED = "skipped"
    FAILED = "failed"
    REPAIRED = "repaired"


WORKER_CAPACITY = "worker_capacity"
"""The kind of a study's event that says how many trials a worker wants at once."""
