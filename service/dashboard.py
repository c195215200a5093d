"""Optuna dashboard on the service's own port, for reading only.

Its client asks for fixed addresses (/dashboard, /static, /api, /csv, /artifacts), so it is served from
the root, after our own routes. It has no login and no read-only mode of its own: an unguarded DELETE
removes a study. Only GET and HEAD get through, which is all that its pages need.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_from_bytes

import optuna_dashboard
from a2wsgi import WSGIMiddleware
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from service import optuna_store, problems
from service.errors import MethodNotAllowed, NotFound

_TREES = ("/dashboard", "/static", "/api", "/csv", "/artifacts")
_PAGES = frozenset({"/", "/favicon.ico", "/incompatible-rdb-schema"})
_READING = ("GET", "HEAD")


class ReadOnly(MethodNotAllowed):
    title = "Dashboard is read-only"
    headers = {"Allow": ", ".join(_READING)}  # noqa: RUF012  (read by the renderer, never changed)


class Dashboard:
    """ASGI application; answers 404 as a problem for whatever is not the dashboard's."""

    def __init__(self, storage: optuna_store.Storage) -> None:
        self._wsgi = WSGIMiddleware(optuna_dashboard.wsgi(storage))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if (
            path not in _PAGES
            and not path.startswith(tuple(f"{tree}/" for tree in _TREES))
            and path not in _TREES
        ):
            response = problems.render_error(NotFound(f"There is nothing at {path}."), path)
            await response(scope, receive, send)
        elif scope["method"] not in _READING:
            error = ReadOnly(f"{scope['method']} is not possible here: the dashboard is read-only.")
            await problems.render_error(error, path)(scope, receive, send)
        elif path == "/":
            # The dashboard's own redirect repeats whatever host the request names.
            await RedirectResponse("/dashboard", 302)(scope, receive, send)
        else:
            await self._wsgi(_mended(scope), receive, send)

    def close(self) -> None:
        """End its threads."""
        self._wsgi.executor.shutdown()


def save_figure(storage: optuna_store.Storage, study: str, figure: Any, name: str) -> None:
    """Put a `plotly.graph_objects.Figure` on a study's page, in place of an earlier one of this name.

    It is stored with the Optuna study itself, in system attributes; only the coordinator writes those.

    Args:
        storage: where the Optuna study is.
        study: its name; it must exist.
        figure: the figure.
        name: letters, digits, `-`, `_` and `.`.
    """
    loaded = optuna_store.load_study(storage, study)
    optuna_dashboard.save_plotly_graph_object(loaded, figure, graph_object_id=name)


def _mended(scope: Scope) -> Scope:
    """What the dashboard and its adapter take for granted and HTTP does not promise."""
    headers = list(scope["headers"])
    if not any(name == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))  # without it, its /static answers 500
    query = scope["query_string"]
    if not query.isascii():
        query = quote_from_bytes(query, safe="%&=+:/?,;@!$'()*~").encode()  # a2wsgi decodes it as ASCII
    return {**scope, "headers": headers, "query_string": query}
