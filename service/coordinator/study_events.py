"""What a study's workers say, written down: each event is one transaction, and then Optuna is told.

An event may come again after a crash. One that SQL counts as applied is passed over; what Optuna was told
already changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import optuna_store
from service.coordinator import results
from service.coordinator.dispatch import (
    PackCapacity,
    Progress,
    Report,
    TrialOutcome,
    TrialStarted,
)
from service.coordinator.held_study import HeldStudy
from service.coordinator.trial_history import has_ended
from service.models import Attempt, EventRow, RungReport
from service.states import LIVE_ATTEMPT_STATES, AttemptState, advance_attempt, append_event

log = logging.getLogger(__name__)

WORKER_CAPACITY = "worker_capacity"
"""The kind of event that says how many trials a worker wants at once."""


class StudyEvents:
    """Takes in the events of one study's workers.

    Args:
        study: the study, whose lease is held.
    """

    def __init__(self, study: HeldStudy) -> None:
        self._study = study

    def on_started(self, event: TrialStarted, seq: int) -> None:
        with self._study.transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None:
                return
            attempt.last_event_seq = seq
            attempt.total_examples = event.total_examples
            attempt.device = event.device
            doing = f"training on {event.device}: {event.data.in_words()}"
            if event.resumed_at_examples > 0:
                attempt.examples_seen = event.resumed_at_examples
                doing += f"; resumed from a checkpoint after {event.resumed_at_examples:,} examples"
            advance_attempt(session, attempt, AttemptState.RUNNING, doing)

    def on_progress(self, event: Progress, seq: int) -> None:
        with self._study.transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is not None:
                attempt.last_event_seq = seq
                attempt.examples_seen = event.examples_seen
                attempt.step = event.step
                attempt.train_loss = event.train_loss

    def on_report(self, event: Report, seq: int) -> str | None:
        """Tell Optuna the rung's metric; why the trial should be pruned, if it should.

        Optuna first: reporting a step twice changes nothing, while an event that SQL already counts as
        applied would not be looked at again after a crash. A repeat is never pruned.
        """
        with self._study.transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None or attempt.verdict_reason is not None:
                return None if attempt is None else attempt.verdict_reason
            number, total = attempt.trial_number, attempt.total_examples or event.examples_seen
        optuna, definition = self._study.optuna, self._study.definition
        newest = optuna_store.report(optuna, number, event.rung, event.metrics[definition.objective.metric])
        reason = None
        # At its end nothing is left to save.
        if newest and event.examples_seen < total and self._study.asked[number].repeat_of is None:
            longest = self._max_examples(number, total)
            reason = optuna_store.should_prune(optuna, definition, number, longest)
        with self._study.transaction() as (session, _):
            attempt = session.get_one(Attempt, event.attempt_id)
            attempt.last_event_seq = seq
            attempt.examples_seen = event.examples_seen
            attempt.step = event.step
            attempt.train_loss = event.train_loss
            self._keep(session, number, event)
            if reason is not None:
                attempt.verdict_reason = reason
                session.add(self._study.event(attempt, "prune_decided", reason))
        return reason

    def _keep(self, session: Session, number: int, event: Report) -> None:
        """Write down what Optuna does not hold of a rung. The first report of a rung stands, as in Optuna."""
        rung = RungReport.study_id == self._study.study_id, RungReport.trial_number == number
        present = session.scalars(select(RungReport.id).where(*rung, RungReport.rung == event.rung))
        if present.one_or_none() is None:
            session.add(
                RungReport(
                    study_id=self._study.study_id,
                    trial_number=number,
                    rung=event.rung,
                    attempt_id=event.attempt_id,
                    examples_seen=event.examples_seen,
                    step=event.step,
                    epoch=event.epoch,
                    metrics=dict(event.metrics),
                    train_loss=event.train_loss,
                    train_seconds=event.train_seconds,
                    gradient_noise_scale=event.gradient_noise_scale,
                )
            )

    def on_outcome(self, event: TrialOutcome, seq: int) -> None:
        """Record the end of an attempt in SQL, then tell Optuna."""
        study = self._study
        with study.transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None:
                return
            outcome = {
                **asdict(event),
                "metrics": dict(event.metrics),
                "rate_curve": [list(point) for point in event.rate_curve],
            }
            attempt.last_event_seq = seq
            state, reason = AttemptState(event.status), event.reason
            missing = None
            if state is AttemptState.COMPLETED:
                missing = results.shortfall(study.definition, study.kind, outcome)
            if attempt.verdict_reason is not None:
                # The pruner's word is final, also over a trial that outran it.
                state, reason = AttemptState.PRUNED, attempt.verdict_reason
            elif missing is not None:
                state, reason = AttemptState.FAILED, missing
            attempt.examples_seen = max(attempt.examples_seen, event.examples_seen)
            attempt.outcome = outcome
            advance_attempt(session, attempt, state, reason)
        study.stops_sent.discard(attempt.id)
        study.tell_of(attempt)

    def on_lost(self, worker_ids: Iterable[str], reason: str) -> list[int]:
        """End the live attempts of dead workers; the numbers of the trials that are lost by it."""
        with self._study.transaction() as (session, _):
            attempts = session.scalars(
                select(Attempt)
                .where(
                    Attempt.study_id == self._study.study_id,
                    Attempt.worker_id.in_(set(worker_ids)),
                    Attempt.state.in_(LIVE_ATTEMPT_STATES),
                )
                .order_by(Attempt.id)
            ).all()
            for attempt in attempts:
                _lose(session, attempt, reason)
                self._study.stops_sent.discard(attempt.id)
        for attempt in attempts:
            if has_ended(attempt):
                self._study.tell_of(attempt)
        return [a.trial_number for a in attempts if not has_ended(a)]

    def lose(self, attempt_id: int, reason: str) -> None:
        """End one attempt as lost while its worker lives."""
        with self._study.transaction() as (session, _):
            attempt = session.get_one(Attempt, attempt_id)
            if attempt.state not in LIVE_ATTEMPT_STATES:
                return
            _lose(session, attempt, reason)
        if has_ended(attempt):
            self._study.tell_of(attempt)

    def on_capacity(self, worker_id: str, event: PackCapacity) -> None:
        """Write down how many trials a worker wants at once, in words.

        The worker keeps only its newest word, so one that comes again is the newest that was written.
        """
        study_id = self._study.study_id
        reason = event.reason.removesuffix(".")  # what follows belongs to the sentence
        message = f"{worker_id} wants {_trials(event.slots)} at once: {reason}{_memory(event)}"
        with self._study.transaction() as (session, _):
            newest = session.scalars(
                select(EventRow.message)
                .where(
                    EventRow.study_id == study_id,
                    EventRow.kind == WORKER_CAPACITY,
                    EventRow.message.startswith(f"{worker_id} ", autoescape=True),
                )
                .order_by(EventRow.id.desc())
                .limit(1)
            ).one_or_none()
            if newest != message:
                append_event(session, study_id, WORKER_CAPACITY, message)

    def _live(self, session: Session, attempt_id: int, seq: int) -> Attempt | None:
        """The attempt, if this event of it is new and it still lives."""
        attempt = session.get(Attempt, attempt_id)
        of_ours = attempt is not None and attempt.study_id == self._study.study_id
        if attempt is None or not of_ours or attempt.state not in LIVE_ATTEMPT_STATES:
            log.warning("an event of attempt %s was ignored: the attempt is not alive", attempt_id)
            return None
        return attempt if seq > attempt.last_event_seq else None

    def _max_examples(self, number: int, total_examples: int) -> int:
        """Training examples of the longest trial the space allows, from what this one sees."""
        epochs = self._study.recipe(number).epochs
        return max(total_examples, round(total_examples / epochs * self._study.definition.max_epochs))


def _lose(session: Session, attempt: Attempt, reason: str) -> None:
    """End an attempt whose worker is lost; what the pruner has decided stands all the same."""
    if attempt.verdict_reason is None:
        advance_attempt(session, attempt, AttemptState.LOST, reason)
    else:
        advance_attempt(session, attempt, AttemptState.PRUNED, attempt.verdict_reason)


def _trials(number: int) -> str:
    return "1 trial" if number == 1 else f"{number} trials"


def _memory(event: PackCapacity) -> str:
    said = (("predicted", event.predicted_bytes), ("measured", event.measured_bytes))
    known = [f"{name} {size / 2**30:.2f} GiB" for name, size in said if size]
    return f" (memory: {', '.join(known)})" if known else ""
