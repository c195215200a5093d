"""A typed client of Nightsweep's REST API."""

from service.client.answers import (
    Adapter,
    BestTrial,
    Counts,
    Fault,
    NamedSpace,
    Problem,
    Progress,
    RungValue,
    Schedule,
    Study,
    StudyEvent,
    Trial,
)
from service.client.errors import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.rest import DEFAULT_SERVER, Client

__all__ = [
    "DEFAULT_SERVER",
    "Adapter",
    "BestTrial",
    "Client",
    "ClientError",
    "Counts",
    "Fault",
    "NamedSpace",
    "Problem",
    "Progress",
    "RefusedError",
    "RungValue",
    "Schedule",
    "Study",
    "StudyEvent",
    "Trial",
    "UnexpectedAnswerError",
    "UnreachableError",
]
