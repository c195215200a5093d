"""OpenTelemetry traces, one for each study: from its submission to its end, with all of its attempts.

Spans are made when something has ended, from the times in its row. So no process holds an open span that a
kill could lose, and spans of several coordinators make one trace: the trace's id is the study's, and the root
span's id is half of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from service.errors import Unavailable
from service.settings import Settings
from service.telemetry.ends import AttemptEnd, End, StudyEnd

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator

EXPORT_SECONDS = 5.0
"""How long the receiver of traces may take; then they are dropped."""
_GOOD = frozenset({"completed", "pruned", "paused"})
"""Ends that are no error."""

Attributes = Mapping[str, str | int | float]


class TracesUnavailable(Unavailable):
    title = "Traces cannot be sent"


class Traces:
    """Sends spans of what has ended. Nothing here raises because a receiver is away.

    Args:
        process: the name of the service in its spans, such as `nightsweep-coordinator`.
        exporter: where spans go.
    """

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._ids = threading.local()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": process}),
            id_generator=_chosen_ids(self._ids),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nightsweep")

    def tell(self, end: End) -> None:
        """Make the spans of something that has ended."""
        if isinstance(end, StudyEnd):
            self._study(end)
        else:
            self._attempt(end)

    def submitted(self, study_id: str, name: str, owner: str, began: datetime, ended: datetime) -> None:
        """Make the span of a submission that was accepted, with the checks that it went through."""
        self._span("submit", study_id, began, ended, {"study": name, "owner": owner})

    def close(self) -> None:
        """Send what has not been sent, for `EXPORT_SECONDS` at most."""
        self._provider.force_flush(round(EXPORT_SECONDS * 1000))
        self._provider.shutdown()

    def _study(self, end: StudyEnd) -> None:
        names: Attributes = {"study": end.study, "owner": end.owner}
        self._span("queued", end.study_id, end.created_at, end.started_at or end.ended_at, names)
        ended: Attributes = {**names, "state": end.state, "reason": end.reason}
        self._span("study", end.study_id, end.created_at, end.ended_at, ended, failed=end.state not in _GOOD)

    def _attempt(self, end: AttemptEnd) -> None:
        attributes: dict[str, str | int | float] = {
            "study": end.study,
            "trial": end.trial,
            "attempt": end.attempt,
            "state": end.state,
            "reason": end.reason,
            "worker": end.worker,
            "examples": end.examples,
            "tokens": end.tokens,
            "waited_seconds": ((end.started_at or end.ended_at) - end.dispatched_at).total_seconds(),
        }
        if end.device is not None:
            attributes["device"] = end.device
        failed = end.state not in _GOOD
        self._span("attempt", end.study_id, end.dispatched_at, end.ended_at, attributes, failed=failed)

    def _span(
        self,
        name: str,
        study_id: str,
        began: datetime,
        ended: datetime,
        attributes: Attributes,
        *,
        failed: bool = False,
    ) -> None:
        from opentelemetry import trace

        trace_id = int(study_id, 16)
        root = trace_id >> 64 or 1
        context = None
        if name == "study":
            self._ids.span, self._ids.trace = root, trace_id
        else:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            parent = trace.SpanContext(trace_id, root, is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        start = _nanoseconds(began)
        span = self._tracer.start_span(name, context, attributes=dict(attributes), start_time=start)
        if failed:
            span.set_status(trace.Status(trace.StatusCode.ERROR, str(attributes.get("reason", ""))))
        span.end(max(start, _nanoseconds(ended)))  # clocks of two machines may differ


def _chosen_ids(chosen: threading.local) -> IdGenerator:
    """Gives the next span of a thread the ids `chosen.span` and `chosen.trace`, if they are there."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class ChosenIds(RandomIdGenerator):
        def generate_span_id(self) -> int:
            found: int = chosen.__dict__.pop("span", 0)
            return found or super().generate_span_id()

        def generate_trace_id(self) -> int:
            found: int = chosen.__dict__.pop("trace", 0)
            return found or super().generate_trace_id()

    return ChosenIds()


def open_traces(settings: Settings, process: str) -> Traces | None:
    """What sends traces; None: they are off.

    Raises:
        TracesUnavailable: the libraries for it are not installed.
    """
    if settings.traces_url is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TracesUnavailable(
            "NIGHTSWEEP_TRACES_URL is set, but the libraries that send traces are not installed. Install them"
            " with pip install 'nightsweep[traces]', or unset it."
        ) from None
    return Traces(process, OTLPSpanExporter(endpoint=settings.traces_url, timeout=EXPORT_SECONDS))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
