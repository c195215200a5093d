"""Everything the service raises on purpose, as one tree.

ServiceError                 rendered as a problem by one handler; carries its HTTP status
├── NotFound                 404  no such study, trial, schedule, search space
├── Conflict                 409
│   ├── NameTaken                 a study or schedule of that name exists
│   ├── NotASearch                a range test was asked for what only a search has
│   ├── AlreadyEnded              the study is over, so it cannot be cancelled, paused or resumed
│   ├── BeingCancelled            it is about to be over, so it cannot be paused or resumed
│   ├── NoTrialsLeft              all trials of the study's search have been asked for
│   ├── NothingToExtend           an extension after which nothing of the study would be done
│   ├── AlreadyTried              the parameters that were enqueued have had their trial
│   ├── StillNeeded               the study cannot be deleted yet: it goes on, or another one needs it
│   ├── BeingRemoved              it is too late to restore the study
│   ├── SweepUnderWay             the schedule's earlier sweep has not ended, and it lets none overlap
│   ├── ChampionRefused           a trial's adapter cannot be a schedule's champion, or is it already
│   ├── LeaseLost                 another coordinator holds the study now; never reaches a client
│   ├── Inconsistent                      the two databases are not of one moment; never reaches a client
│   ├── BackupError               a backup cannot be written or restored; never reaches a client
│   └── IllegalTransition         a state was asked to move where the table has no way
├── Unreadable               400  the body is not a JSON or YAML document
├── TooLarge                 413
├── UnsupportedMediaType     415
├── Invalid                  422  a document or parameter with faults, all of them at once
├── Unauthorized             401
├── Forbidden                403  a page of another site, or a host name that is not this server's
├── MethodNotAllowed         405
├── TooSlow                  408  the body did not come in time
├── PreconditionFailed       412  `If-Match` names another revision than the present one
├── KeyReused                422  the `Idempotency-Key` came with another request before
├── LimitReached             429  the owner has as many studies or trials as the server allows
└── Unavailable              503
    └── SchemaOutOfDate           the tables need `nightsweep db upgrade`
"""

# ruff: noqa: N818  (the names say what happened, as `InvalidDefinition` does)

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.errors import Fault
from search_spaces.wording import counted


class ServiceError(Exception):
    """Base of what the service raises on purpose.

    Attributes:
        status: the HTTP status it is answered with.
        title: the same few words for every error of this kind.
        detail: what was wrong, what was expected, and what to do.
        faults: every fault found, for documents.
    """

    status = 500
    title = "Internal error"
    headers: Mapping[str, str] = {}

    def __init__(self, detail: str, *, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)


class NotFound(ServiceError):
    status = 404
    title = "Not found"


class Conflict(ServiceError):
    status = 409
    title = "Conflict"


class NameTaken(Conflict):
    title = "Name already taken"


class NotASearch(Conflict):
    title = "Not a search"


class AlreadyEnded(Conflict):
    title = "Already ended"


class BeingCancelled(Conflict):
    title = "Being cancelled"


class NoTrialsLeft(Conflict):
    title = "No trials left"


class NothingToExtend(Conflict):
    title = "Nothing to extend"


class AlreadyTried(Conflict):
    title = "Already tried"


class StillNeeded(Conflict):
    title = "Still needed"


class BeingRemoved(Conflict):
    title = "Being removed"


class SweepUnderWay(Conflict):
    title = "Sweep under way"


class ChampionRefused(Conflict):
    title = "Champion refused"


class IllegalTransition(Conflict):
    title = "Illegal state change"


class LeaseLost(Conflict):
    title = "Lease lost"


class Inconsistent(Conflict):
    title = "Databases of different moments"


class BackupError(Conflict):
    title = "No such backup"


class Unreadable(ServiceError):
    status = 400
    title = "Unreadable body"


class TooLarge(ServiceError):
    status = 413
    title = "Body too large"


class UnsupportedMediaType(ServiceError):
    status = 415
    title = "Unsupported media type"


class Invalid(ServiceError):
    status = 422
    title = "Invalid"

    def __init__(self, what: str, faults: Sequence[Fault]) -> None:
        paths = ", ".join(fault.path for fault in faults if fault.path)
        super().__init__(
            f"{what} has {counted(len(faults), 'fault')}{': ' + paths if paths else ''}.", faults=faults
        )


class Unauthorized(ServiceError):
    status = 401
    title = "Unauthorized"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Basic realm="nightsweep", charset="UTF-8"'}


class Forbidden(ServiceError):
    status = 403
    title = "Forbidden"


class TooSlow(ServiceError):
    status = 408
    title = "Body too slow"


class MethodNotAllowed(ServiceError):
    status = 405
    title = "Method not allowed"


class PreconditionFailed(ServiceError):
    status = 412
    title = "Changed in between"


class KeyReused(ServiceError):
    status = 422
    title = "Idempotency key reused"


class LimitReached(ServiceError):
    status = 429
    title = "Limit reached"


class Unavailable(ServiceError):
    status = 503
    title = "Unavailable"
    headers: Mapping[str, str] = {"Retry-After": "5"}


class SchemaOutOfDate(Unavailable):
    title = "Database schema out of date"
