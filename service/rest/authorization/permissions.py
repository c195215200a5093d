"""What each route needs of whoever asks for it: one table, checked when the application is made.

A route that is not in the table keeps the application from starting, so that none is open by oversight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from sqlalchemy.orm import Session

from service.db.kinds import Role
from service.db.models import Schedule, Study
from service.db.rows import find
from service.errors import Forbidden
from service.rest.authorization.callers import Caller

Kind = Literal["study", "range_test", "schedule"]
EVERYBODY = "*"
"""In a list of owners with whom something is shared."""


@dataclass(frozen=True)
class Need:
    """What a route needs.

    Attributes:
        role: at least this one; None: nothing, not even a key.
        own: the path parameter that names what is changed: it must be the caller's, or be shared with them,
            unless they are an admin.
        sharing: whether being shared is not enough: only the owner and admins share and delete it.
    """

    role: Role | None
    own: Kind | None = None
    sharing: bool = False


OPEN = Need(None)
READ = Need(Role.VIEWER)
SUBMIT = Need(Role.SUBMITTER)
ADMINISTER = Need(Role.ADMIN)


def _change(kind: Kind) -> Need:
    return Need(Role.SUBMITTER, own=kind)


def _own(kind: Kind) -> Need:
    return Need(Role.SUBMITTER, own=kind, sharing=True)


NEEDS: dict[str, Need] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /login": OPEN,
    "POST /login": OPEN,
    "GET /login/openid": OPEN,
    "GET /login/openid/callback": OPEN,
    "GET /": READ,
    "GET /pages/{digest}/{name}": READ,
    "GET /reports/studies/{study}": READ,
    "GET /reports/studies/{study}/file": READ,
    "GET /reports/schedules/{schedule}": READ,
    "GET /reports/schedules/{schedule}/file": READ,
    "GET /metrics": READ,
    "GET /logout": READ,
    "POST /logout": READ,
    "GET /openapi.json": READ,
    "GET /docs": READ,
    "GET /docs/oauth2-redirect": READ,
    "GET /v1/me": READ,
    "GET /v1/keys": ADMINISTER,
    "POST /v1/keys": ADMINISTER,
    "GET /v1/keys/{key}": ADMINISTER,
    "PATCH /v1/keys/{key}": ADMINISTER,
    "POST /v1/keys/{key}/rotate": ADMINISTER,
    "DELETE /v1/keys/{key}": ADMINISTER,
    "GET /v1/audit": ADMINISTER,
    "GET /v1/studies": READ,
    "POST /v1/studies": SUBMIT,
    "GET /v1/studies/{study}": READ,
    "PATCH /v1/studies/{study}": _change("study"),
    "DELETE /v1/studies/{study}": _own("study"),
    "POST /v1/studies/{study}/restore": _own("study"),
    "POST /v1/studies/{study}/archive": _change("study"),
    "POST /v1/studies/{study}/unarchive": _change("study"),
    "POST /v1/studies/{study}/extend": _change("study"),
    "POST /v1/studies/{study}/cancel": _change("study"),
    "POST /v1/studies/{study}/pause": _change("study"),
    "POST /v1/studies/{study}/resume": _change("study"),
    "GET /v1/studies/{study}/access": READ,
    "PUT /v1/studies/{study}/access": _own("study"),
    "GET /v1/studies/{study}/events": READ,
    "GET /v1/studies/{study}/events/stream": READ,
    "GET /v1/events": READ,
    "GET /v1/events/stream": READ,
    "GET /v1/studies/{study}/enqueued": READ,
    "GET /v1/studies/{study}/trials": READ,
    "POST /v1/studies/{study}/trials": _change("study"),
    "POST /v1/studies/{study}/trials/{number}/stop": _change("study"),
    "GET /v1/studies/{study}/trials/{number}/log": READ,
    "GET /v1/studies/{study}/trials/{number}": READ,
    "GET /v1/studies/{study}/trials/{number}/adapter": READ,
    "GET /v1/studies/{study}/attempts": READ,
    "GET /v1/studies/{study}/best": READ,
    "GET /v1/studies/{study}/report": READ,
    "GET /v1/studies/{study}/importance": READ,
    "GET /v1/studies/{study}/pareto-front": READ,
    "GET /v1/range-tests": READ,
    "POST /v1/range-tests": SUBMIT,
    "GET /v1/range-tests/{range_test}": READ,
    "POST /v1/range-tests/{range_test}/cancel": _change("range_test"),
    "GET /v1/schedules": READ,
    "POST /v1/schedules": SUBMIT,
    "GET /v1/schedules/{schedule}": READ,
    "PATCH /v1/schedules/{schedule}": _change("schedule"),
    "DELETE /v1/schedules/{schedule}": _change("schedule"),
    "POST /v1/schedules/{schedule}/run": _change("schedule"),
    "GET /v1/schedules/{schedule}/access": READ,
    "PUT /v1/schedules/{schedule}/access": _own("schedule"),
    "GET /v1/schedules/{schedule}/studies": READ,
    "GET /v1/schedules/{schedule}/history": READ,
    "GET /v1/schedules/{schedule}/firings": READ,
    "GET /v1/schedule-preview": READ,
    "GET /v1/schedules/{schedule}/champion": READ,
    "GET /v1/schedules/{schedule}/champion/history": READ,
    "GET /v1/schedules/{schedule}/champion/adapter": READ,
    "POST /v1/schedules/{schedule}/champion": _change("schedule"),
    "POST /v1/schedules/{schedule}/champion/rollback": _change("schedule"),
    "GET /v1/search-spaces": READ,
    "GET /v1/search-spaces/{name}": READ,
    "GET /v1/workers": READ,
    "POST /v1/workers/devices/{device:path}/restore": ADMINISTER,
}
"""`METHOD path` as the route is declared. What no route matches is the dashboard's, which anybody may read
who has come in; HEAD needs what GET does."""


class UndeclaredRouteError(RuntimeError):
    """A route has no entry in `NEEDS`, or an entry no route."""


def require_declared(app: FastAPI) -> None:
    """Refuse an application of which a route is not in the table, or an entry leads nowhere.

    Raises:
        UndeclaredRouteError: names all of them.
    """
    routes = set(_routes(app))
    missing, stale = sorted(routes - NEEDS.keys()), sorted(NEEDS.keys() - routes)
    if missing or stale:
        raise UndeclaredRouteError(
            f"routes without a declared need: {', '.join(missing) or 'none'}; declared but not there: "
            f"{', '.join(stale) or 'none'}. See NEEDS in service/rest/authorization/permissions.py."
        )


def _routes(app: FastAPI) -> Iterator[str]:
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                yield f"{method} {route.path}"


def route_of(request: Request) -> str:
    """`METHOD path` of the route that a request has matched."""
    method = "GET" if request.method == "HEAD" else request.method
    return f"{method} {request.scope['route'].path}"


@dataclass(frozen=True)
class Permission:
    """What a request needs, and who asks.

    Attributes:
        ref: of what is changed, as the path has it; empty where that does not matter.
    """

    caller: Caller
    need: Need
    ref: str = ""

    @classmethod
    def of(cls, request: Request, caller: Caller) -> Permission:
        need = NEEDS[route_of(request)]
        return cls(caller, need, "" if need.own is None else request.path_params[need.own])

    def require_role(self) -> None:
        """Raise `Forbidden` unless the caller's role is enough."""
        if self.need.role is not None and not self.caller.role.covers(self.need.role):
            raise Forbidden(
                f"This needs the role {self.need.role}; {self.caller.owner!r} has the role "
                f"{self.caller.role} here. An admin of this server can give a key with another role."
            )

    def require_own(self, session: Session, *, lock: bool = False) -> Study | Schedule | None:
        """What is changed, if there is such a thing, which the caller may change.

        Args:
            session: reads; with `lock` a writing transaction, in which the answer then stays right.
            lock: lock its row.

        Raises:
            Forbidden: it is another owner's, and not shared with the caller.
        """
        if self.need.own is None:
            return None
        kind: type[Study] | type[Schedule] = Schedule if self.need.own == "schedule" else Study
        found: Study | Schedule | None = find(session, kind, self.ref, lock=lock)  # type: ignore[type-var]
        if found is None or self._may_change(found):
            return found  # what is not there is the endpoint's to say
        what = self.need.own.replace("_", " ")
        share = f"; {found.owner!r} can share it: nightsweep share {found.name} {self.caller.owner}"
        if self.need.own == "schedule":
            share += " --schedule"
        raise Forbidden(
            f"The {what} {found.name!r} is {found.owner!r}'s. Only its owner and admins may do this"
            + ("." if self.need.sharing else f"{share}.")
        )

    def _may_change(self, found: Study | Schedule) -> bool:
        if self.caller.role is Role.ADMIN or found.owner == self.caller.owner:
            return True
        shared = found.shared or ()
        return not self.need.sharing and (EVERYBODY in shared or self.caller.owner in shared)
