"""The REST application. Imports neither torch nor Ray: an API host needs neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from service import optuna_store
from service.access.auth import ApiKeyGuard
from service.access.browser_guard import RequestGuard, is_loopback
from service.answers import Problem
from service.db.database import check_schema, open_database
from service.definitions.json_schema import definition_schemas
from service.devices import endpoints as fleet_endpoints
from service.plans.checks import SubmissionChecks
from service.plans.report_process import ReportProcesses
from service.presets import endpoints as catalog_endpoints
from service.range_tests import endpoints as range_test_endpoints
from service.reports import endpoints as report_endpoints
from service.rest import problems
from service.rest.body_limit import BodyLimit
from service.rest.dashboard import Dashboard
from service.rest.dependencies import MAX_CHANGES, THREADS, Resources, check_query
from service.rest.health import router as health_router
from service.rest.readiness import ReadinessCheck
from service.schedules import endpoints as schedule_endpoints
from service.settings import Settings
from service.studies import endpoints as study_endpoints
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
        dependencies=[Depends(check_query)],
        redirect_slashes=False,
    )
    problems.add_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(ApiKeyGuard, key=settings.api_key)  # before any byte is read
    # Outermost: a request that a browser was tricked into brings the key along.
    local_only = settings.api_key is None and is_loopback(settings.host)
    app.add_middleware(RequestGuard, local_only=local_only)
    everywhere = problems.declare(401, 403, 422, 503)
    for endpoints in (
        study_endpoints,
        trial_endpoints,
        report_endpoints,
        range_test_endpoints,
        schedule_endpoints,
        fleet_endpoints,
        catalog_endpoints,
    ):
        app.include_router(endpoints.router, responses=everywhere)
    app.include_router(health_router, responses=problems.declare(422))
    # What no route of ours matches is the dashboard's, or nobody's. Not a mount: a mount at the root
    # would also take `DELETE /v1/studies`, which is a 405 of ours.
    app.router.default = _fallback
    app.openapi = lambda: _openapi(app, guarded=settings.api_key is not None)  # type: ignore[method-assign]
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
        resources, dashboard = await run_in_threadpool(_open, settings)
        app.state.resources, app.state.dashboard = resources, dashboard
        try:
            yield
        finally:
            await run_in_threadpool(_close, resources, dashboard)

    return lifespan


def _open(settings: Settings) -> tuple[Resources, Dashboard]:
    database = open_database(settings)
    try:
        check_schema(database.engine)
        storage = optuna_store.open_storage(settings)
    except BaseException:
        database.dispose()
        raise
    reports = ReportProcesses(settings.plan_timeout_seconds, settings.loading_limits)
    if settings.submission_check_seconds:
        reports.warm_up()
    checks = SubmissionChecks(reports, settings.submission_check_seconds)
    changes = asyncio.Semaphore(MAX_CHANGES)
    readiness = ReadinessCheck(settings, database, storage)
    resources = Resources(settings, database, storage, reports, checks, readiness, changes)
    return resources, Dashboard(storage, database)


def _close(resources: Resources, dashboard: Dashboard) -> None:
    dashboard.close()
    resources.reports.close()
    resources.readiness.close()
    optuna_store.close_storage(resources.storage)
    resources.database.dispose()


async def _fallback(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    await scope["app"].state.dashboard(scope, receive, send)


def _openapi(app: FastAPI, *, guarded: bool) -> dict[str, Any]:
    """FastAPI's document, with our problems in place of its own shape for 422."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        # Without a key of the server's own, one is needed as soon as anybody has been given one.
        security: list[dict[str, list[str]]] = [{"bearer": []}, {"basic": []}, *([] if guarded else [{}])]
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        published = definition_schemas()
        assert not schemas.keys() & published.keys(), "two schemas of one name"
        schemas |= {**problem.pop("$defs"), "Problem": problem, **published}
        for path in document["paths"].values():
            for operation in path.values():
                if "401" in operation["responses"]:
                    operation["security"] = security
                for parameter in operation.get("parameters", []):
                    parameter["schema"] = _without_null(parameter["schema"])
        document["components"]["securitySchemes"] = {
            scheme: {"type": "http", "scheme": scheme} for scheme in ("bearer", "basic")
        }
        app.openapi_schema = document
    return app.openapi_schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema. One that may be left out is `X | None` in Python, but nobody can send a null."""
    forms = [form for form in schema.get("anyOf", []) if form != {"type": "null"}]
    if len(forms) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **forms[0]}
