"""A trial's log: what happened to it and what it reported, in the order of time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.models import Attempt, EventRow, RungReport, Study, Trial
from service.trials.queries import no_trial
from service.trials.schemas import LogLine, TrialLog

MOST_LINES = 1000
"""Of each kind: events, and rungs. The last ones are given."""


def read_log(session: Session, study: Study, number: int) -> TrialLog:
    """The events and the rungs of one trial, oldest first. Raises `NotFound`."""
    if session.get(Trial, (study.id, number)) is None:
        raise no_trial(study, number)
    events = session.scalars(
        select(EventRow)
        .where(EventRow.study_id == study.id, EventRow.trial_number == number)
        .order_by(EventRow.id.desc())
        .limit(MOST_LINES)
    )
    rungs = session.execute(
        select(RungReport, Attempt.ordinal)
        .join(Attempt, Attempt.id == RungReport.attempt_id)
        .where(RungReport.study_id == study.id, RungReport.trial_number == number)
        .order_by(RungReport.id.desc())
        .limit(MOST_LINES)
    )
    lines = [
        *(LogLine(at=event.at, kind=event.kind, message=event.message) for event in events),
        *(_rung(report, ordinal) for report, ordinal in rungs),
    ]
    return TrialLog(items=sorted(lines, key=_time))


def _rung(report: RungReport, ordinal: int) -> LogLine:
    words = ", ".join(f"{name} {value:.6g}" for name, value in report.metrics.items() if value is not None)
    train = "" if report.train_loss is None else f", train_loss {report.train_loss:.6g}"
    return LogLine(
        at=report.at,
        kind="rung",
        attempt=ordinal,
        rung=report.rung,
        message=f"{report.rung:,} examples, step {report.step:,}, epoch {report.epoch:.3g}: {words}{train}",
        metrics=report.metrics,
    )


def _time(line: LogLine) -> tuple[bool, datetime | None, int]:
    """Rungs of versions that kept no time come first, by their examples."""
    return (line.at is not None, line.at, line.rung or 0)
