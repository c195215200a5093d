"""The REST application. Imports neither torch nor Ray: an API host needs neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from importlib import metadata
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from service.access.audit import endpoints as audit_endpoints
from service.access.auth import ApiKeyGuard
from service.access.browser_guard import RequestGuard
from service.access.exposure import is_loopback
from service.access.keys import endpoints as key_endpoints
from service.access.last_use import LastUse
from service.access.openid import endpoints as openid_endpoints
from service.access.openid.provider import Provider
from service.access.sessions import endpoints as session_endpoints
from service.access.sharing import endpoints as sharing_endpoints
from service.champions import endpoints as champion_endpoints
from service.control import endpoints as control_endpoints
from service.dashboard.dashboard import Dashboard
from service.db.database import open_database
from service.devices import endpoints as device_endpoints
from service.events import endpoints as event_endpoints
from service.events.broadcaster import Broadcaster
from service.health.endpoints import router as health_router
from service.health.readiness import ReadinessCheck
from service.maintenance.schema import check_schema
from service.metrics import endpoints as metrics_endpoints
from service.metrics.requests import RequestTimes, TimedRequests
from service.optuna_store.storage import close_storage, open_storage
from service.pages.endpoints import router as pages_router
from service.plans.checks import SubmissionChecks
from service.plans.data_reports.processes import ReportProcesses
from service.presets import endpoints as preset_endpoints
from service.range_tests import endpoints as range_test_endpoints
from service.reports import endpoints as report_endpoints
from service.rest import openapi, problems
from service.rest.authorization.enforcement import require_permission
from service.rest.authorization.permissions import require_declared
from service.rest.body_limit import BodyLimit
from service.rest.dependencies import MAX_CHANGES, THREADS, Resources, check_query
from service.schedules import endpoints as schedule_endpoints
from service.settings import Settings
from service.studies import endpoints as study_endpoints
from service.telemetry.traces import open_traces
from service.trials import endpoints as trial_endpoints

DESCRIPTION = """Hyperparameter search for quantized LoRA fine-tunes.

Errors are RFC 9457 problems (`application/problem+json`) that name every fault at once."""


def create_app(settings: Settings) -> FastAPI:
    """The application. It opens its databases when it starts and closes them when it stops.

    Raises (at its start):
        SchemaOutOfDate: the tables are missing or not of this version; run `nightsweep db upgrade`.
    """
    # FastAPI's own page loads its script and style from another host, which a cluster may not reach.
    app = FastAPIOffline(
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # it would send the document's address elsewhere
        title="Nightsweep",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan(settings),
        dependencies=[Depends(require_permission), Depends(check_query)],
        redirect_slashes=False,
    )
    problems.add_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(ApiKeyGuard, settings=settings)  # before any byte is read
    # Outermost: a request that a browser was tricked into brings the key along.
    local_only = not settings.guarded and is_loopback(settings.host)
    app.add_middleware(RequestGuard, local_only=local_only)
    app.state.request_times = RequestTimes()
    app.add_middleware(TimedRequests, times=app.state.request_times)  # refusals take time as well
    everywhere = problems.declare(401, 403, 422, 503)
    for endpoints in (
        study_endpoints,
        event_endpoints,
        control_endpoints,
        trial_endpoints,
        report_endpoints,
        range_test_endpoints,
        schedule_endpoints,
        champion_endpoints,
        device_endpoints,
        preset_endpoints,
        metrics_endpoints,
        sharing_endpoints,
        key_endpoints,
        audit_endpoints,
    ):
        app.include_router(endpoints.router, responses=everywhere)
    app.include_router(schedule_endpoints.previews, responses=everywhere)
    app.include_router(health_router, responses=problems.declare(422))
    app.include_router(session_endpoints.router)
    app.include_router(openid_endpoints.router)
    app.include_router(pages_router)
    require_declared(app)
    # What no route of ours matches is the dashboard's, or nobody's. Not a mount: a mount at the root
    # would also take `DELETE /v1/studies`, which is a 405 of ours.
    app.router.default = _fallback
    app.openapi = lambda: openapi.describe(app, guarded=settings.guarded)  # type: ignore[method-assign]
    return app


def _version() -> str:
    try:
        return metadata.version("nightsweep")
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "0"


def _lifespan(settings: Settings) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        with ExitStack() as stack:
            await run_in_threadpool(_open, app, settings, stack)
            closing = stack.pop_all()
        try:
            yield
        finally:
            app.state.broadcaster.close()
            await run_in_threadpool(closing.close)

    return lifespan


def _open(app: FastAPI, settings: Settings, stack: ExitStack) -> None:
    """Open what endpoints use; what the stack holds then closes it, the last first."""
    database = open_database(settings)
    stack.callback(database.dispose)
    check_schema(database.engine)
    storage = open_storage(settings)
    stack.callback(close_storage, storage)
    reports = ReportProcesses(settings.plan_timeout_seconds, settings.loading_limits)
    stack.callback(reports.close)
    if settings.submission_check_seconds:
        reports.warm_up()
    readiness = ReadinessCheck(settings, database, storage)
    stack.callback(readiness.close)
    dashboard = Dashboard(storage, database)
    stack.callback(dashboard.close)
    last_use = LastUse(database)
    stack.callback(last_use.close)
    app.state.last_use = last_use
    app.state.openid = None if settings.openid_issuer is None else Provider(settings)
    traces = open_traces(settings, "nightsweep-api")
    if traces is not None:
        stack.callback(traces.close)
    app.state.resources = Resources(settings, database, storage, asyncio.Semaphore(MAX_CHANGES), traces)
    app.state.broadcaster = Broadcaster(database)
    app.state.reports, app.state.readiness, app.state.dashboard = reports, readiness, dashboard
    app.state.checks = SubmissionChecks(reports, settings.submission_check_seconds)


async def _fallback(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    await scope["app"].state.dashboard(scope, receive, send)
