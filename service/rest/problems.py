"""Errors as RFC 9457 problems: one renderer, one set of handlers, one way to declare them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown, words_of
from service.answers import problem
from service.db.errors import disk_trouble, is_outage, is_transient
from service.definitions.labels import TAG_FORM
from service.errors import Invalid, ServiceError, Unavailable
from service.log_limit import LogLimit, short
from service.optuna_store.storage import StorageInternalError

log = logging.getLogger(__name__)
_log_limit = LogLimit()

MEDIA_TYPE = "application/problem+json"

_NAME_FORM = "1 to 200 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
OWNER_FORM = (
    "1 to 64 letters, digits, signs @ and +, dots, hyphens and underscores, beginning with a letter or a"
    " digit"
)
_FORMS = {
    "header.idempotency-key": "1 to 200 printable ASCII characters in double quotes, or without quotes if"
    " they contain no spaces, commas or quotes; for example a UUID",
    "header.if-match": 'an ETag as it was received, in double quotes, such as "3"; up to ten, with commas;'
    " or *",
    "query.cursor": "the next_cursor of the previous page",
    "header.last-event-id": "an id of an event, as it was received",
    "query.study": _NAME_FORM,
    "query.prefix": _NAME_FORM,
    "query.schedule": _NAME_FORM,
    "query.owner": OWNER_FORM,
    "query.tag": TAG_FORM,
}
"""What people are told in place of a regular expression."""


def declare(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that answers with these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def render(
    status: int,
    title: str,
    detail: str,
    path: str,
    *,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response."""
    answer = problem(status, title, detail, path, faults)
    return JSONResponse(answer.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def render_error(error: ServiceError, path: str) -> Response:
    return render(
        error.status, error.title, error.detail, path, faults=error.faults, headers=dict(error.headers)
    )


def add_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SQLAlchemyError, _database_error)
    app.add_exception_handler(StorageInternalError, _database_error)
    app.add_exception_handler(Exception, _unexpected)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return render_error(error, request.url.path)


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [request_fault(found) for found in error.errors()]
    return render_error(Invalid("The request", faults), request.url.path)


def request_fault(found: Mapping[str, Any]) -> Fault:
    """What FastAPI found wrong with a parameter or header. One of several values has the parameter's path."""
    path = ".".join(str(part) for part in found["loc"][:2])
    context = found.get("ctx") or {}
    message, allowed = found["msg"], context.get("expected")
    nearest = None
    if found["type"] == "string_pattern_mismatch" and path in _FORMS:
        message, allowed = "does not have the expected form", _FORMS[path]
    elif found["type"] in ("enum", "literal_error"):
        names = re.findall(r"'([^']*)'", str(allowed))
        message, allowed = "is not one of the allowed values", ", ".join(names)
        nearest = nearest_name(found.get("input"), names)
    else:
        message, allowed = words_of(found["type"], context) or (message, allowed)
    return Fault(
        path=path, value=shown(found.get("input")), message=message, allowed=allowed, nearest=nearest
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase.capitalize()
    detail = {
        404: f"There is nothing at {request.url.path}.",
        405: f"The method {request.method} is not allowed on {request.url.path}.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
    return render(error.status_code, title, detail, request.url.path, headers=headers)


def _methods(request: Request) -> list[str]:
    """What the OpenAPI document has for a path. Starlette names those of the first route there alone."""
    allowed: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].fullmatch(request.url.path):
            allowed |= {method.upper() for method in operations}
    return sorted(allowed)


async def _database_error(request: Request, error: Exception) -> Response:
    if not (is_outage(error) or is_transient(error)):
        raise error  # a fault of ours
    suffix = _log_limit.suffix(short(error))
    if suffix is not None:
        log.error("the database failed a request%s", suffix, exc_info=error)
    trouble = disk_trouble(error)
    what = "does not answer" if trouble is None else f"cannot write: {trouble}"
    unavailable = Unavailable(f"The database {what}; try again. The server's log has the cause.")
    return render_error(unavailable, request.url.path)


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the server logs it with its traceback.
    return render(
        500,
        "Internal error",
        "An unexpected error occurred; the server's log has the details.",
        request.url.path,
    )
