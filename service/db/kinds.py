"""Words that the tables hold beside states, and the REST API shows. Light to import."""

from __future__ import annotations

from enum import StrEnum


class StudyKind(StrEnum):
    """What the trials of a study are."""

    SEARCH = "search"
    RANGE_TEST = "range_test"
    """Sweeps of the learning rate, one trial for each (batch size, rank) corner of a definition's space."""


class Role(StrEnum):
    """What the holder of a key may do; each may do what those before may."""

    VIEWER = "viewer"
    """Read everything but keys and the audit log."""
    SUBMITTER = "submitter"
    """Submit and plan, and change what is its own or shared with it."""
    ADMIN = "admin"
    """Everything."""

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what the other one may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class Overlap(StrEnum):
    """What a schedule does at its time when an earlier sweep of it is queued or running still."""

    SKIP = "skip"
    ALLOW = "allow"
    QUEUE = "queue"
    """The firing waits until the earlier sweep has ended. At most one waits: a later one takes its place."""
    CANCEL_RUNNING = "cancel_running"
    """The earlier sweep is cancelled, and the new one is made at once."""


class CatchUp(StrEnum):
    """What becomes of firings that were missed."""

    LATEST = "latest"
    """The latest is made, late."""
    NONE = "none"


class UntilAction(StrEnum):
    """What becomes of a sweep at its schedule's `until`."""

    END = "end"
    PAUSE = "pause"
    """It stays paused until a person resumes it."""
    CONTINUE = "continue"
    """It is paused, and the next firing resumes it."""


class ScheduleEventKind(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    REMOVED = "removed"
    UNCHECKED = "unchecked"
    SKIPPED = "skipped"
    MISSED = "missed"
    QUEUED = "queued"
    CONTINUED = "continued"
    CANCELLED_EARLIER = "cancelled_earlier"
    ENDED = "ended"
    FAILED = "failed"
    REPAIRED = "repaired"


WORKER_CAPACITY = "worker_capacity"
"""The kind of a study's event that says how many trials a worker wants at once."""


class ContestDecision(StrEnum):
    """What a sweep decided about its schedule's champion."""

    CROWNED = "crowned"
    """There was none: the sweep's winner is the first."""
    DETHRONED = "dethroned"
    """The sweep's winner is better beyond the noise."""
    DEFENDED = "defended"
    """It is not, or that cannot be told: the champion stays."""
    UNCHALLENGED = "unchallenged"
    """The sweep has nobody to put up, or was ended."""
    SUCCEEDED = "succeeded"
    """The champion cannot be evaluated any more, so the sweep's winner follows it without a comparison."""


class Contestant(StrEnum):
    """Whose adapter an evaluation evaluates."""

    CHAMPION = "champion"
    """What a sweep does first."""
    CHALLENGER = "challenger"
    """What it does last."""
