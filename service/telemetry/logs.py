"""One log on standard error for each process, as lines for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from search_spaces.wording import SENTENCE_CHARACTERS, LogFormatter, shortened
from service.settings import Settings
from service.telemetry.ends import AttemptEnd, End

log = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_ABOUT: ContextVar[Mapping[str, Any]] = ContextVar("about", default=_NOTHING)


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """Have all records of this block say what they are about: `study`, `trial`, `attempt`."""
    token = _ABOUT.set({**_ABOUT.get(), **ids})
    try:
        yield
    finally:
        _ABOUT.reset(token)


class JsonFormatter(logging.Formatter):
    """Each record as one line of JSON: `time`, `level`, `logger`, `message`, what it is about, `exception`.

    Times are UTC. Texts are as bounded and as printable as in the log for people.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exceptions = LogFormatter("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": shortened(record.getMessage(), SENTENCE_CHARACTERS),
            **_ABOUT.get(),
        }
        if record.exc_info:
            empty = logging.makeLogRecord({"msg": "", "exc_info": record.exc_info})
            line["exception"] = self._exceptions.format(empty).strip()
        return json.dumps(line, default=str)


def configure_logging(settings: Settings) -> None:
    """One record per event on standard error, for the processes that have no terminal of their own."""
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def log_end(end: End) -> None:
    """A line for the end of an attempt. Those of studies are logged by what ends them."""
    if isinstance(end, AttemptEnd):
        ids = {"study": end.study, "study_id": end.study_id, "trial": end.trial, "attempt": end.attempt}
        with about(**ids, state=end.state, worker=end.worker):
            log.info(
                "trial %d of %s, attempt %d: %s: %s", end.trial, end.study, end.attempt, end.state, end.reason
            )
