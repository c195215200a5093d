"""/metrics"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from prometheus_client import exposition
from prometheus_client.core import Metric

from service.metrics.exposition import families
from service.metrics.measurements import Measurements, measure
from service.metrics.requests import RequestTimes
from service.rest.dependencies import Reading

router = APIRouter(tags=["metrics"])


class _Both:
    """What the process counts and what the database says."""

    def __init__(self, times: RequestTimes, measured: Measurements) -> None:
        self._times = times
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        yield from self._times.registry.collect()
        yield from families(self._measured)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Metrics in the text format of Prometheus, or as OpenMetrics if that is accepted",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
def get_metrics(
    request: Request, session: Reading, accept: Annotated[str, Header(include_in_schema=False)] = ""
) -> Response:
    """Metrics for Prometheus: of all studies, and of this API process."""
    times: RequestTimes = request.app.state.request_times
    encode, media_type = exposition.choose_encoder(accept)
    return Response(encode(_Both(times, measure(session))), media_type=media_type)
