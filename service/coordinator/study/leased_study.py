"""A study whose lease this coordinator holds: what it is, what is known of its trials, how to write to it.

SQL comes first and Optuna second, and whatever Optuna is told may be told again, so a crash between the
two repairs itself when the study is next taken (`load`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import RequestRefusedError, SearchSpaceExhausted
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.recipe import Recipe
from search_spaces.sampling.history import ENQUEUED
from service import optuna_store
from service.analysis import outcomes
from service.control import requests
from service.coordinator import leases
from service.coordinator.cluster.orders import base_of, model_of
from service.coordinator.leases import Lease
from service.coordinator.policy.snapshot import TrialSnapshot
from service.coordinator.policy.trial_history import AskedTrial, has_ended
from service.coordinator.policy.waiting import WAITING, Standing
from service.coordinator.study import ends, verdicts
from service.coordinator.study.ends import ENDED_AS, LARGE
from service.db import trials
from service.db.database import Database
from service.db.kinds import StudyKind
from service.db.models import Attempt, EventRow, Study
from service.db.transitions import advance_study, append_event, drop_recipes, end_trial, put_down, start
from service.definitions.stored import extended_since, require_definition
from service.optuna_store.asking import unfinished_asks
from service.optuna_store.fences import fenced
from service.optuna_store.held_trials import HeldTrials
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study, find_study_number, frozen_trial, read_trials
from service.optuna_store.telling import OUTCOME_ATTR
from service.states import AttemptState, StudyState
from service.trials import rebuilding

T = TypeVar("T")

STARTED = "a coordinator has started it"
"""Why a queued study is running."""

RANGE_TEST_METRIC = "train_loss"
"""What Optuna's study of a range test calls its value: the lowest smoothed train loss."""


class LeasedStudy:
    """A study while this coordinator holds its lease.

    Args:
        lease: what makes it ours.
        database: the service's tables.
        storage: Optuna's.

    Raises:
        ValidationError: this version cannot read the stored definition.
    """

    def __init__(self, *, lease: Lease, database: Database, storage: Storage) -> None:
        self.lease = lease
        self.database = database
        study = self.transact(lambda _, study: study)
        self.name = study.name
        self.kind = StudyKind(study.kind)
        self.created_at = study.created_at
        self._extended = 0
        self._read(study)
        self.preparation = NOTHING
        if study.preparation is not None:
            self.preparation = Preparation.model_validate(study.preparation)
        self.lease = leases.fence_off(database, storage, lease, self.name)
        storage = fenced(storage, self.name, number=self.lease.number, owner=self.lease.owner)
        self._storage = storage
        self.optuna = ensure_study(
            HeldTrials(storage),
            self.name,
            self.definition,
            study_id=lease.study_id,
            metric=RANGE_TEST_METRIC if self.kind is StudyKind.RANGE_TEST else None,
        )
        self._note_number()
        self.asked: dict[int, AskedTrial] = {}
        """By number, all that Optuna was asked for."""
        self.ends: dict[int, TrialSnapshot] = {}
        """The trials that have ended, as Optuna was told."""
        self.exhausted = False
        """The sampler has said that the space has no further configuration."""
        self._said = ""
        self._verdicts = verdicts.Verdicts(lease.study_id)
        self._recipes: dict[int, Recipe] = {}
        self._order: dict[int, int] = {}

    def _read(self, study: Study) -> None:
        self.definition: StudyDefinition = require_definition(study)
        self.since = extended_since(study.extensions)
        """The number of the first trial after it was last extended when it had ended."""
        self._extended = len(study.extensions or ())

    def follow(self, session: Session) -> bool:
        """Read the definition again if it was extended since; whether it was."""
        present = session.scalars(select(Study.extensions).where(Study.id == self.study_id)).one()
        if extended := len(present or ()) != self._extended:
            self._read(session.get_one(Study, self.study_id))
        return extended

    @property
    def study_id(self) -> str:
        return self.lease.study_id

    def _note_number(self) -> None:
        """Write down where the dashboard shows the study."""
        number = find_study_number(self._storage, self.name)

        def work(_: Session, study: Study) -> None:
            study.optuna_number = number

        self.transact(work)

    def transact(self, work: Callable[[Session, Study], T]) -> T:
        """Do some work in a writing transaction that begins by holding the lease.

        Args:
            work: gets the session and the study, locked. It may be run more than once (`Database.transact`).

        Raises:
            LeaseLost: another coordinator has the study now.
        """
        return self.database.transact(lambda session: work(session, leases.hold(session, self.lease)))

    def renew(self, seconds: float) -> None:
        """Extend the lease. Raises `LeaseLost`."""
        self.database.transact(lambda session: leases.renew(session, self.lease, seconds=seconds))

    # -- the study -----------------------------------------------------------------------------

    def begin(self) -> None:
        """queued -> running."""

        def work(session: Session, study: Study) -> None:
            if study.state == StudyState.QUEUED:
                start(session, study, STARTED)

        self.transact(work)

    def say(self, standing: Standing) -> None:
        """Write down how the study stands while it runs, when that has changed."""
        words = standing.words
        if words == self._said:
            return

        def work(session: Session, study: Study) -> None:
            if study.state == StudyState.RUNNING and study.reason != words:
                study.reason = words
                if standing.waits:
                    append_event(session, study.id, WAITING, words)

        self.transact(work)
        self._said = words

    def pause(self, reason: str, *, resumed_at: datetime | None, even_if_resumed: bool = False) -> bool:
        """running -> paused, and the lease is given back.

        Args:
            reason: why.
            resumed_at: when its last pause had ended, as far as was known when this was decided.
            even_if_resumed: pause it even if somebody has resumed it since.

        Returns:
            False, with nothing changed, if somebody has resumed it since.
        """

        def work(session: Session, study: Study) -> bool:
            if study.resumed_at != resumed_at and not even_if_resumed:
                return False
            put_down(session, study, reason)
            return True

        return self.transact(work)

    def is_to_be_cancelled(self) -> bool:
        """Whether somebody has asked for its cancellation."""
        with self.database.read() as session:
            return session.get_one(Study, self.study_id).cancel_requested

    def end(self, state: StudyState, reason: str, settle: Callable[[Session, Study], None]) -> bool:
        """Record the study's end, and give the lease back.

        Args:
            state: what it becomes.
            reason: why.
            settle: what else is recorded with it.

        Returns:
            False, with nothing changed, if somebody has extended it since its definition was read.
        """
        completed = sum(end.value is not None for end in self.ends.values())
        large = self.kind is StudyKind.SEARCH and completed >= LARGE
        found = ends.importance(self._storage, self.name, self.definition) if large else None

        def work(session: Session, study: Study) -> bool:
            if len(study.extensions or ()) != self._extended:
                return False
            if study.state == StudyState.QUEUED and state is StudyState.COMPLETED:
                advance_study(session, study, StudyState.RUNNING, STARTED)
            settle(session, study)
            advance_study(session, study, state, reason)
            study.importance = found
            study.lease_owner = None
            study.lease_expires_at = None
            return True

        return self.transact(work)

    # -- its trials ----------------------------------------------------------------------------

    def load(self) -> None:
        """Read all trials and their ends from Optuna, and bring their rows in line with them.

        Every ask must be complete (`recovery.reconcile`).
        """
        with self.database.read() as session:
            self._order = ends.order(session, self.study_id)
            fatal = ends.fatal_reasons(session, self.study_id)
        found = read_trials(self._storage, self.name)
        requested = {t.user_attrs[ENQUEUED]: t.number for t in found if ENQUEUED in t.user_attrs}

        def work(session: Session, study: Study) -> None:
            rebuilding.rebuild(session, study, found)
            requests.note_asked(session, self.study_id, requested)

        self.transact(work)
        for trial in found:
            self.asked[trial.number] = AskedTrial(
                params=trial.params, repeat_of=trial.repeat_of, seed=trial.seed, evaluates=trial.evaluates
            )
            if trial.state in ENDED_AS:
                # Somebody else who told Optuna of it did not say more than that.
                outcome = trial.user_attrs.get(OUTCOME_ATTR, ENDED_AS[trial.state])
                self._end(
                    trial.number,
                    AttemptState(outcome),
                    value=trial.value,
                    feasible=trial.feasible,
                    fatal_reason=fatal.get(trial.number),
                )

    def complete(self, number: int) -> None:
        """Give an ask that was cut short the parameters that it would have got."""
        try:
            optuna_store.complete_ask(self.optuna, self.definition, number, self.preparation)
        except SearchSpaceExhausted as error:
            # Its asker died before it could learn that there was nothing to ask for.
            self.exhausted = True
            self.end_trial(number, AttemptState.CANCELLED, f"it has no configuration: {error}")

    def ask(self) -> int | None:
        """One more trial from the sampler: its number; None: the space has no further configuration."""
        self.transact(lambda *_: None)  # A coordinator that lost its lease must not ask.
        for trial in unfinished_asks(self.optuna):
            # One whose lease ran out in mid-ask may have asked after this one had loaded the study.
            if trial.number not in self.asked and trial.searched:
                self._add(trial.number, AskedTrial(params=trial.params))
                return trial.number
        try:
            number, params = self._ask()
        except SearchSpaceExhausted:
            self.exhausted = True
            return None
        self._add(number, AskedTrial(params=params))
        return number

    def _ask(self) -> tuple[int, dict[str, Any]]:
        """What a person has enqueued comes first, the oldest of it first."""
        while True:
            with self.database.read() as session:
                request = requests.next_request(session, self.study_id)
            try:
                return optuna_store.ask(self.optuna, self.definition, self.preparation, request)
            except RequestRefusedError as error:
                assert request is not None
                why = partial(drop_recipes, study_id=self.study_id, reason=str(error), recipe=request.id)
                self.transact(lambda session, _, why=why: why(session))  # type: ignore[misc]

    def ask_repeat(self, of: int, seed: int) -> int:
        """A trial of another one's recipe with a further seed: its number."""
        self.transact(lambda *_: None)
        number, params = optuna_store.ask_repeat(self.optuna, self.definition, of=of, seed=seed)
        self._add(number, AskedTrial(params=params, repeat_of=of, seed=seed))
        return number

    def ask_evaluation(self, evaluates: Mapping[str, Any]) -> int:
        """A trial that evaluates an adapter and trains nothing: its number."""
        self.transact(lambda *_: None)
        number = optuna_store.ask_evaluation(self.optuna, evaluates)
        self._add(number, AskedTrial(params={}, evaluates=evaluates))
        return number

    def _add(self, number: int, asked: AskedTrial) -> None:
        """Have a row for a trial that Optuna was asked for, and say which request it answers."""
        request = frozen_trial(self.optuna, number).user_attrs.get(ENQUEUED)

        def work(session: Session, _: Study) -> None:
            trials.add(
                session,
                self.study_id,
                number,
                asked.params,
                repeat_of=asked.repeat_of,
                seed=asked.seed,
                evaluates=asked.evaluates,
            )
            if request is not None:
                requests.note_asked(session, self.study_id, {request: number})

        self.transact(work)
        self.asked[number] = asked

    def recipe(self, number: int) -> Recipe:
        """A trial's recipe; a repeat's has a seed of its own, an evaluation's is that of its adapter."""
        if number not in self._recipes:
            asked = self.asked[number]
            if asked.evaluates is not None:
                recipe = Recipe.model_validate(asked.evaluates["recipe"])
            else:
                recipe = build_recipe(self.definition, asked.params)
            if asked.seed is not None:
                recipe = recipe.model_copy(update={"seed": asked.seed})
            self._recipes[number] = recipe
        return self._recipes[number]

    def base(self, number: int) -> str:
        """The base that a trial trains on, in words."""
        return base_of(model_of(self.definition, self.recipe(number)))

    def event(self, attempt: Attempt, kind: str, message: str) -> EventRow:
        return EventRow(study_id=self.study_id, trial_number=attempt.trial_number, kind=kind, message=message)

    def tell_of(self, attempt: Attempt) -> None:
        """Tell Optuna what became of a trial by its last attempt."""
        outcome: dict[str, Any] = attempt.outcome or {}
        state = AttemptState(attempt.state)
        if state is not AttemptState.COMPLETED:
            fatal = attempt.reason if outcome.get("fatal_to_study") else None
            self.tell(attempt.trial_number, state, attempt.reason, fatal_reason=fatal)
            return
        result = outcomes.result(self.definition, self.kind, outcome)
        optuna_store.tell(
            self.optuna,
            attempt.trial_number,
            state,
            attempt.reason,
            value=result.value,
            costs=result.costs,
            violations=outcomes.violations(self.definition, self.kind, outcome),
        )
        self._end(attempt.trial_number, state, value=result.value, feasible=result.feasible)
        self.diagnose(attempt.trial_number, state)

    def tell_ends(self, attempts: Iterable[Attempt]) -> None:
        """Tell Optuna of those trials that have ended with these attempts."""
        for attempt in attempts:
            if has_ended(attempt):
                self.tell_of(attempt)

    def end_trial(self, number: int, outcome: AttemptState, reason: str) -> None:
        """End a trial that has no live attempt."""
        self.transact(lambda session, _: end_trial(session, self.study_id, number, outcome, reason))
        self.tell(number, outcome, reason)

    def tell(
        self, number: int, outcome: AttemptState, reason: str, *, fatal_reason: str | None = None
    ) -> None:
        """Tell Optuna of a trial that did not complete, for a reason that may be every trial's."""
        optuna_store.tell(self.optuna, number, outcome, reason)
        feasible = outcome is not AttemptState.OUT_OF_MEMORY  # which is a violated constraint, as it is told
        self._end(number, outcome, feasible=feasible, fatal_reason=fatal_reason)
        self.diagnose(number, outcome)

    def diagnose(self, number: int, outcome: AttemptState) -> None:
        """Keep what the diagnosis says of a trial that has ended, and of others since it has."""
        trains = number not in self.asked or self.asked[number].evaluates is None
        if trains and self.kind is StudyKind.SEARCH and verdicts.has_verdicts(outcome):
            with self.database.read() as session:
                found = self._verdicts.read(session, number)
            if found:
                self.transact(lambda session, _: verdicts.write(session, self.study_id, found))

    def _end(self, number: int, outcome: AttemptState, **known: Any) -> None:
        place = self._order.setdefault(number, len(self._order))
        self.ends[number] = ends.ended(number, self.asked.get(number), outcome, place, **known)
