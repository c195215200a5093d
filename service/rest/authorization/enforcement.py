"""Every request is held against what its route needs, before anything else of it is looked at."""

from __future__ import annotations

from datetime import timedelta

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.errors import Forbidden, Unauthorized
from service.rest.authorization import audit
from service.rest.authorization.callers import Caller, origin_of
from service.rest.authorization.permissions import NEEDS, Permission, route_of
from service.rest.dependencies import Resources
from service.settings import Settings

_READING = frozenset({"GET", "HEAD"})


async def require_permission(request: Request) -> None:
    """A dependency of the whole application, and its first.

    What is changed is looked up here already, so that nothing is read or checked for somebody who may not
    change it; `Change` does so again in its transaction.

    Raises:
        Unauthorized: nobody knows the caller.
        Forbidden: the caller's role is not enough, or what would be changed is another owner's.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        if NEEDS[route_of(request)].role is None:
            return
        raise Unauthorized("This needs an API key.")  # the guard has said so before, and better
    permission = Permission.of(request, caller)
    resources: Resources = request.app.state.resources
    try:
        permission.require_role()
        if permission.need.own is not None:
            await run_in_threadpool(_look, resources, permission)
    except Forbidden as error:
        if request.method not in _READING:
            entry = audited(request, caller, resources.settings)
            await run_in_threadpool(_record, resources, entry, error.detail)
        raise


def _look(resources: Resources, permission: Permission) -> None:
    with resources.database.read() as session:
        permission.require_own(session)


def _record(resources: Resources, entry: audit.Request, why: str) -> None:
    resources.database.transact(lambda session: entry.record(session, audit.REFUSED, summary=why))


def audited(request: Request, caller: Caller, settings: Settings) -> audit.Request:
    """What the audit log says of a request, whatever comes of it."""
    method, _, path = route_of(request).partition(" ")
    return audit.Request(
        caller=caller,
        origin=origin_of(request.scope),
        method=method,
        route=path,
        action=request.scope["route"].name,
        parameters=request.path_params,
        keep=timedelta(days=settings.audit_days),
    )
