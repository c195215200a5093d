"""A typed client of Nightsweep's REST API."""

from service.client.answers import (
    Adapter,
    BestTrial,
    Counts,
    Fault,
    Finding,
    NamedSpace,
    ParetoPoint,
    Problem,
    Progress,
    RangeTest,
    RungValue,
    Schedule,
    ScheduleEvent,
    Study,
    StudyEvent,
    Trial,
)
from service.client.errors import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.fleet import Device, Fleet, Worker
from service.client.reports import Best, Importance, Judgement, Report
from service.client.rest import AWAY, DEFAULT_SERVER, Client

__all__ = [
    "AWAY",
    "DEFAULT_SERVER",
    "Adapter",
    "Best",
    "BestTrial",
    "Client",
    "ClientError",
    "Counts",
    "Device",
    "Fault",
    "Finding",
    "Fleet",
    "Importance",
    "Judgement",
    "NamedSpace",
    "ParetoPoint",
    "Problem",
    "Progress",
    "RangeTest",
    "RefusedError",
    "Report",
    "RungValue",
    "Schedule",
    "ScheduleEvent",
    "Study",
    "StudyEvent",
    "Trial",
    "UnexpectedAnswerError",
    "UnreachableError",
    "Worker",
]
