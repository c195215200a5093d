"""The service's own tables: lifecycle, attempts, trials, leases, events, schedules.

Parameters and reported values are true in Optuna's storage, from which samplers learn; `Trial` has a copy of
them for readers. A study's id and a trial's number link the two. Times are UTC with a zone. The partial
unique indexes make bad states impossible rather than unlikely.
"""

from service.db.models.access import (
    ApiKey,
    AuditEntry,
    IdempotencyKey,
    LoginFailure,
    LoginSession,
    PendingLogin,
)
from service.db.models.base import NOBODY, Base, new_id, utc_now
from service.db.models.champions import ContestRow, EvaluationRow, Reign
from service.db.models.control import EnqueuedRecipe, RemovedStudy, StudyTag, TrialStop
from service.db.models.machines import Coordinator, Device, PassCostsRow
from service.db.models.schedules import Schedule, ScheduleEvent
from service.db.models.studies import EventCounter, EventRow, Study
from service.db.models.trials import Attempt, RungReport, Trial

__all__ = [
    "NOBODY",
    "ApiKey",
    "Attempt",
    "AuditEntry",
    "Base",
    "ContestRow",
    "Coordinator",
    "Device",
    "EnqueuedRecipe",
    "EvaluationRow",
    "EventCounter",
    "EventRow",
    "IdempotencyKey",
    "LoginFailure",
    "LoginSession",
    "PassCostsRow",
    "PendingLogin",
    "Reign",
    "RemovedStudy",
    "RungReport",
    "Schedule",
    "ScheduleEvent",
    "Study",
    "StudyTag",
    "Trial",
    "TrialStop",
    "new_id",
    "utc_now",
]
