"""Errors of pages: as pages for browsers, as problems for programs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from service.db.errors import is_outage, is_transient
from service.errors import ServiceError, Unavailable
from service.optuna_store.storage import StorageInternalError
from service.pages.rendering import page


class PageRoute(APIRoute):
    """A route whose `ServiceError`s, and a database that is away, become pages for those who accept HTML."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if "text/html" not in request.headers.get("accept", ""):
                return await answer(request)
            try:
                return await answer(request)
            except ServiceError as error:
                return _page(error)
            except (SQLAlchemyError, StorageInternalError) as error:
                if not (is_outage(error) or is_transient(error)):
                    raise
                return _page(Unavailable("The database does not answer; try again in a moment."))

        return handle


def _page(error: ServiceError) -> Response:
    return page("error.html.j2", error.status, error=error)
