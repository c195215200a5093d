"""Keeps the diagnosis of a leased study's trials with their rows, as they end."""

from __future__ import annotations

from dataclasses import astuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.analysis.diagnosis import Finding
from service.analysis.running_diagnosis import RunningDiagnosis
from service.db.models import Study, Trial
from service.states import AttemptState
from service.trials import records


class Verdicts:
    """The diagnosis of one study; its trials are read when the first one ends.

    Args:
        study_id: the study's.
    """

    def __init__(self, study_id: str) -> None:
        self._study_id = study_id
        self._running: RunningDiagnosis | None = None

    def read(self, session: Session, number: int) -> dict[int, list[Finding]]:
        """What is new to be said, now that a trial has ended, and of which trials."""
        study = session.get_one(Study, self._study_id)
        if self._running is None:
            trials = records.read(session, study)
            self._running = RunningDiagnosis(trials.curves())
            kept = {record.number: list(record.findings) for record in trials.records if record.diagnosed}
            return {of: found for of, found in self._running.findings.items() if kept.get(of) != found}
        found = {}
        for curve in records.read(session, study, [number]).curves():
            found.update(self._running.add(curve))
        return found


def write(session: Session, study_id: str, findings: dict[int, list[Finding]]) -> None:
    """Keep these verdicts with the trials' rows."""
    rows = select(Trial).where(Trial.study_id == study_id, Trial.number.in_(findings))
    for row in session.scalars(rows):
        row.findings = [list(astuple(finding)) for finding in findings[row.number]]


def has_verdicts(outcome: AttemptState) -> bool:
    """Whether the diagnosis says something of trials that ended so."""
    return outcome in records.DIAGNOSED
