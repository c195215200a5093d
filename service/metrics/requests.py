"""How long requests take, counted by this process since its start."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds. 0.3 is the limit that reads are measured against."""


class RequestTimes:
    """What one API process knows of its requests and of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.seconds = Histogram(
            "nightsweep_request_seconds",
            "Time from a request's header to its answer's. An answer that is a stream ends later.",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )


class TimedRequests:
    """ASGI middleware: observes each request once, under its route's template.

    So there are as many series as there are routes, whatever is asked for: `route` is `other` for what is no
    route of the API's, such as the dashboard's files.

    Args:
        app: what is timed.
        times: where it is counted.
    """

    def __init__(self, app: ASGIApp, *, times: RequestTimes) -> None:
        self._app = app
        self._times = times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._times.seconds.labels(method, route, f"{message['status'] // 100}xx").observe(
                    time.perf_counter() - start
                )
            await send(message)

        await self._app(scope, receive, timed)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others, which anybody may invent, are counted together."""
