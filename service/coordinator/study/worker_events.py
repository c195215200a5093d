"""Records what a study's workers report: each event in one transaction, and then in Optuna.

An event may come again after a crash. One that SQL counts as applied is passed over; what Optuna was told
already changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search_spaces.wording import counted
from service import optuna_store
from service.analysis import outcomes
from service.coordinator.policy.retries import RUNGS_SO_FAR
from service.coordinator.policy.trial_history import has_ended
from service.coordinator.policy.waiting import STARTING
from service.coordinator.study import checkpoints, contests, device_health, pass_costs
from service.coordinator.study.attempts import are_live, attempts_of
from service.coordinator.study.leased_study import LeasedStudy
from service.coordinator.study.snapshot_reader import rungs_of
from service.db import trials
from service.db.database import database_now
from service.db.kinds import WORKER_CAPACITY, StudyKind
from service.db.models import Attempt, EventRow, RungReport, Study
from service.db.transitions import advance_attempt, append_event
from service.states import LIVE_ATTEMPT_STATES, AttemptState, LossCause
from workers.contract import (
    Decision,
    PackCapacity,
    PassCosts,
    Preparing,
    Progress,
    Report,
    TrialOutcome,
    TrialStarted,
)

log = logging.getLogger(__name__)

NOT_ALIVE = "the coordinator no longer counts this attempt as running"
"""What a worker is told of an attempt that it still trains and that has ended here."""

DROP = Decision.PAUSE, NOT_ALIVE
"""It is put down, not stopped: whoever stops deletes the trial's checkpoints, from which another attempt may
be about to go on."""


class WorkerEvents:
    """Takes in the events of one study's workers.

    Args:
        study: the study, whose lease is held.
    """

    def __init__(self, study: LeasedStudy) -> None:
        self._study = study

    def on_preparing(self, event: Preparing, seq: int) -> None:
        """Record what an attempt waits for; the study's history mentions each such stage once."""
        study_id = self._study.study_id
        mentioned = select(EventRow.id).where(
            EventRow.study_id == study_id, EventRow.kind == STARTING, EventRow.message == event.stage
        )

        def note(session: Session, _: Study) -> None:
            attempt = self._new(session, event.attempt_id, seq)
            if attempt is None:
                return
            attempt.last_event_seq = seq
            if attempt.state == AttemptState.DISPATCHED:
                attempt.reason = event.stage
                trials.follow(session, attempt)
            if session.scalars(mentioned.limit(1)).first() is None:
                append_event(session, study_id, STARTING, event.stage)

        self._study.transact(note)

    def on_started(self, event: TrialStarted, seq: int) -> tuple[Decision, str] | None:
        """Record that an attempt trains; what its worker is to be told, if anything."""

        def note(session: Session, _: Study) -> bool:
            attempt = self._live(session, event.attempt_id)
            if attempt is None or seq <= attempt.last_event_seq:
                return attempt is not None
            attempt.last_event_seq = seq
            attempt.total_examples = event.total_examples
            attempt.device = event.device
            trains = self._study.asked[attempt.trial_number].evaluates is None
            doing = f"{'training' if trains else 'evaluating'} on {event.device}: {event.data.in_words()}"
            earlier = attempts_of(session, attempt.study_id, attempt.trial_number)[:-1]
            first_rung = self._first_rung(event)
            again = checkpoints.why_anew(event, attempt, earlier, first_rung=first_rung) if trains else None
            if event.resumed_at_examples > 0:
                attempt.examples_seen = attempt.resumed_at_examples = event.resumed_at_examples
                doing += f"; resumed from a checkpoint after {event.resumed_at_examples:,} examples"
            elif again is not None:
                doing += "; it begins again at 0 examples"
            if attempt.state == AttemptState.RUNNING:  # it waited for a free slot, and its checkpoint is gone
                attempt.examples_seen, attempt.reason = event.resumed_at_examples, doing
                trials.follow(session, attempt)
            else:
                advance_attempt(session, attempt, AttemptState.RUNNING, doing)
            if again is not None:
                session.add(self._study.event(attempt, checkpoints.UNUSABLE, again))
            return True

        return None if self._study.transact(note) else DROP

    def _first_rung(self, event: TrialStarted) -> int | None:
        """Examples after which the trial writes its first checkpoint; None for a range test's sweep."""
        if self._study.kind is StudyKind.RANGE_TEST:
            return None
        return min(
            self._study.definition.evaluation.every_examples or event.total_examples, event.total_examples
        )

    def on_progress(self, event: Progress, seq: int) -> None:
        def note(session: Session, _: Study) -> None:
            attempt = self._new(session, event.attempt_id, seq)
            if attempt is not None:
                attempt.last_event_seq = seq
                attempt.examples_seen = event.examples_seen
                attempt.step = event.step
                attempt.train_loss = event.train_loss
                attempt.tokens, attempt.padded_tokens = event.tokens

        self._study.transact(note)

    def on_report(self, event: Report, seq: int) -> tuple[Decision, str] | None:
        """Tell Optuna the rung's objective, if it was measured; what the worker is to be told, if anything.

        Optuna first: reporting a step twice changes nothing, while an event that SQL already counts as
        applied would not be looked at again after a crash. A repeat is never pruned.
        """
        with self._study.database.read() as session:
            attempt = self._live(session, event.attempt_id)
        if attempt is None:
            return DROP
        if seq <= attempt.last_event_seq:
            return None
        if attempt.verdict_reason is not None:
            return Decision.PRUNE, attempt.verdict_reason
        number, total = attempt.trial_number, attempt.total_examples or event.examples_seen
        optuna, definition = self._study.optuna, self._study.definition
        value = event.metrics.get(
            definition.objective.metric
        )  # what is generated may be measured at the end only
        newest = value is not None and optuna_store.report(optuna, number, event.rung, value)
        reason = None
        # At its end nothing is left to save.
        if newest and event.examples_seen < total and self._study.asked[number].repeat_of is None:
            longest = self._max_examples(number, total)
            reason = optuna_store.should_prune(optuna, definition, number, longest)

        def note(session: Session, _: Study) -> None:
            attempt = session.get_one(Attempt, event.attempt_id)
            attempt.last_event_seq = seq
            attempt.last_rung = max(attempt.last_rung, event.rung)
            if event.examples_seen >= attempt.examples_seen:  # else a rung from before its checkpoint
                attempt.examples_seen = event.examples_seen
                attempt.step = event.step
                attempt.train_loss = event.train_loss
            self._keep(session, number, event)
            if value is not None:
                trials.report(session, attempt.study_id, number, event.rung, value)
            if reason is not None:
                attempt.verdict_reason = reason
                session.add(self._study.event(attempt, "prune_decided", reason))

        self._study.transact(note)
        return None if reason is None else (Decision.PRUNE, reason)

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
        """Record the end of an attempt in SQL, then tell Optuna, if it is its trial's end, too."""

        def end(session: Session, _: Study) -> list[Attempt]:
            attempt = self._new(session, event.attempt_id, seq)
            if attempt is None:
                return []
            outcome = {
                **asdict(replace(event, evaluated=None)),
                "metrics": dict(event.metrics),
                "rate_curve": [list(point) for point in event.rate_curve],
            }
            attempt.last_event_seq = seq
            attempt.examples_seen = max(attempt.examples_seen, event.examples_seen)
            if event.evaluated is not None:
                outcome["evaluated"] = contests.keep(session, attempt, event.evaluated)
            attempt.outcome = outcome
            if event.storage_fault:
                # Its rungs stand, and so does what the pruner said of them; its end was the folder's fault.
                attempt.outcome = {**outcome, RUNGS_SO_FAR: rungs_of(session, attempt.study_id)}
                _lose([attempt], event.reason, LossCause.STORAGE, session)
                return [attempt]
            state, reason = AttemptState(event.status), event.reason
            missing = result = None
            if state is AttemptState.COMPLETED:
                missing = outcomes.shortfall(self._study.definition, self._study.kind, outcome)
            if attempt.verdict_reason is not None:
                # The pruner's word is final, also over a trial that outran it.
                state, reason = AttemptState.PRUNED, attempt.verdict_reason
            elif missing is not None:
                state, reason = AttemptState.FAILED, missing
            if state is AttemptState.COMPLETED:
                result = outcomes.result(self._study.definition, self._study.kind, outcome)
            advance_attempt(session, attempt, state, reason, result=result)
            if result is not None and event.evaluated is not None:
                contests.note(session, self._study, attempt, result.value)
            return [attempt]

        self._study.tell_ends(self._study.transact(end))

    def on_lost(self, worker_ids: Iterable[str], reason: str, cause: LossCause) -> list[int]:
        """End the live attempts of workers that are gone; the numbers of the trials that are lost by it.

        A GPU on which workers die again and again is put aside.
        """
        of_workers = Attempt.worker_id.in_(set(worker_ids))

        def end(session: Session, _: Study) -> Sequence[Attempt]:
            attempts = session.scalars(
                select(Attempt).where(*are_live(self._study.study_id), of_workers).order_by(Attempt.id)
            ).all()
            _lose(attempts, reason, cause, session)
            if cause is LossCause.WORKER_DIED:
                for device_id in sorted({a.device_id for a in attempts if a.device_id is not None}):
                    device_health.put_aside_if_bad(session, device_id, study_id=self._study.study_id)
            return attempts

        attempts = self._study.transact(end)
        self._study.tell_ends(attempts)
        return [a.trial_number for a in attempts if not has_ended(a)]

    def lose(self, attempt_id: int, reason: str, cause: LossCause) -> None:
        """End one attempt as lost while its worker lives."""

        def end(session: Session, _: Study) -> list[Attempt]:
            attempt = session.get_one(Attempt, attempt_id)
            alive = [attempt] if attempt.state in LIVE_ATTEMPT_STATES else []
            _lose(alive, reason, cause, session)
            return alive

        self._study.tell_ends(self._study.transact(end))

    def on_capacity(self, worker_id: str, event: PackCapacity) -> None:
        """Write down how many trials a worker wants at once, when it wants more or fewer than ever before.

        Where recipes differ, nearly every trial that comes or goes changes what fits; only how far that
        number goes is news. So an event that is delivered again is not written down again.
        """
        study_id = self._study.study_id
        slots = EventRow.data["slots"].as_integer()
        range_so_far = select(func.min(slots), func.max(slots)).where(
            EventRow.study_id == study_id,
            EventRow.kind == WORKER_CAPACITY,
            EventRow.data["worker_id"].as_string() == worker_id,
        )
        message, data = _capacity(worker_id, event), {"worker_id": worker_id, "slots": event.slots}

        def note(session: Session, _: Study) -> None:
            fewest, most = session.execute(range_so_far).one()
            if fewest is None or not fewest <= event.slots <= most:
                append_event(session, study_id, WORKER_CAPACITY, message, data=data)

        self._study.transact(note)

    def on_pass_costs(self, event: PassCosts) -> None:
        """Keep what a worker has learnt, for those that come after it."""
        self._study.transact(lambda session, _: pass_costs.keep(session, event))

    def _live(self, session: Session, attempt_id: int) -> Attempt | None:
        """The attempt, if it still lives."""
        attempt = session.get(Attempt, attempt_id)
        of_ours = attempt is not None and attempt.study_id == self._study.study_id
        if attempt is None or not of_ours or attempt.state not in LIVE_ATTEMPT_STATES:
            log.warning("an event of attempt %s was ignored: the attempt is not alive", attempt_id)
            return None
        return attempt

    def _new(self, session: Session, attempt_id: int, seq: int) -> Attempt | None:
        """The attempt, if this event of it is new and it still lives."""
        attempt = self._live(session, attempt_id)
        return attempt if attempt is not None and seq > attempt.last_event_seq else None

    def _max_examples(self, number: int, total_examples: int) -> int:
        """Training examples of the longest trial the space allows, from what this one sees."""
        epochs = self._study.recipe(number).epochs
        return max(total_examples, round(total_examples / epochs * self._study.definition.max_epochs))


def _lose(attempts: Sequence[Attempt], reason: str, cause: LossCause, session: Session) -> None:
    """End attempts whose worker is lost; what the pruner has decided stands all the same.

    They end in the same moment, by the database's clock: by it their back-off is measured, and by it one
    sees who was on a worker when it died.
    """
    # Starts are by this machine's clock, which may be ahead of the database's.
    now = max([database_now(session), *(a.started_at or a.dispatched_at for a in attempts)])
    for attempt in attempts:
        if attempt.verdict_reason is None:
            attempt.loss_cause = cause
            stage = attempt.reason if attempt.state == AttemptState.DISPATCHED else ""
            said = f"{reason.rstrip('.')}, while {stage}" if stage else reason
            advance_attempt(session, attempt, AttemptState.LOST, said, at=now)
        else:
            advance_attempt(session, attempt, AttemptState.PRUNED, attempt.verdict_reason, at=now)


def _capacity(worker_id: str, event: PackCapacity) -> str:
    """How many trials a worker wants at once and why, in words."""
    sizes = (("predicted", event.predicted_bytes), ("measured", event.measured_bytes))
    memory = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in sizes if size)
    words = f"{worker_id} wants {counted(event.slots, 'trial')} at once: {event.reason.removesuffix('.')}"
    return f"{words} (memory: {memory})" if memory else words
