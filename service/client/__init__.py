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
    Study,
    StudyEvent,
    Trial,
)
from service.client.errors import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.reports import Best, Importance, Judgement, Report
from service.client.rest import DEFAULT_SERVER, Client

__all__ = [
    "DEFAULT_SERVER",
    "Adapter",
    "Best",
    "BestTrial",
    "Client",
    "ClientError",
    "Counts",
    "Fault",
    "Finding",
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
    "Study",
    "StudyEvent",
    "Trial",
    "UnexpectedAnswerError",
    "UnreachableError",
]
