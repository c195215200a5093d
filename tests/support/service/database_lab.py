"""Stands in for the coordinator: asks, writes attempts and reports, tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study as OptunaStudy

from search_spaces.definition import StudyDefinition
from service.db.database import Database
from service.db.models import Attempt, RungReport, Study
from service.db.transitions import advance_attempt, advance_study
from service.optuna_store import asking, reporting
from service.optuna_store.asking import ask_repeat
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study
from service.optuna_store.telling import tell
from service.states import AttemptState, StudyState
from service.trials.rebuilding import rebuild_all


class Lab:
    """One study whose trials a test makes up."""

    def __init__(self, study: dict[str, Any], database: Database, storage: Storage) -> None:
        self.id = study["id"]
        self.definition = StudyDefinition.model_validate(study["definition"])
        self.database, self.storage = database, storage
        self.optuna: OptunaStudy = ensure_study(storage, study["name"], self.definition, study_id=self.id)

    def ask(self) -> tuple[int, dict[str, Any]]:
        asked = asking.ask(self.optuna, self.definition)
        self.settle()
        return asked

    def settle(self) -> None:
        """Bring the rows of trials in line with what was written elsewhere, as a coordinator does."""
        rebuild_all(self.database, self.storage)

    def attempt(self, number: int, ordinal: int = 1, end: AttemptState | None = None, **columns: Any) -> None:
        with self.database.write() as session:
            attempt = Attempt(
                study_id=self.id,
                trial_number=number,
                ordinal=ordinal,
                worker_id=f"worker-{ordinal}",
                artifact_dir="/a",
                **columns,
            )
            session.add(attempt)
            session.flush()
            advance_attempt(session, attempt, AttemptState.RUNNING, "training on cpu")
            session.flush()
            if end is not None:
                advance_attempt(session, attempt, end, f"it {end}")
        self.settle()

    def report(
        self,
        number: int,
        rung: int,
        metrics: Mapping[str, float],
        train_loss: float,
        *,
        noise: float | None = None,
    ) -> None:
        """The row of a rung, beside what Optuna is told."""
        with self.database.write() as session:
            session.add(
                RungReport(
                    study_id=self.id,
                    trial_number=number,
                    rung=rung,
                    attempt_id=1,
                    examples_seen=rung + 4,
                    step=rung // 8,
                    epoch=1.0,
                    metrics=dict(metrics),
                    train_loss=train_loss,
                    train_seconds=3.0,
                    gradient_noise_scale=noise,
                )
            )
        self.settle()

    def complete(
        self,
        value: float,
        *,
        costs: Sequence[float] = (),
        violations: Mapping[str, float] | None = None,
        repeat_of: int | None = None,
        seed: int = 0,
        rungs: Sequence[tuple[float, float]] = (),
        total: int | None = None,
        end: AttemptState = AttemptState.COMPLETED,
        **outcome: Any,
    ) -> int:
        """A trial, of the search or a repeat, from its ask to its end. Rungs are (eval loss, train loss)."""
        if repeat_of is None:
            number, _ = self.ask()
        else:
            number, _ = ask_repeat(self.optuna, self.definition, of=repeat_of, seed=seed)
        for place, (eval_loss, train_loss) in enumerate(rungs, 1):
            reporting.report(self.optuna, number, 100 * place, eval_loss)
            self.report(number, 100 * place, {"eval_loss": eval_loss}, train_loss)
        seen = 100 * len(rungs)
        self.attempt(
            number,
            1,
            end,
            outcome={"value": value, **outcome},
            total_examples=total or seen,
            examples_seen=seen,
        )
        completed = end is AttemptState.COMPLETED
        tell(
            self.optuna,
            number,
            end,
            f"it {end}",
            value=value if completed else None,
            costs=costs,
            violations=violations,
        )
        self.settle()
        return number

    def advance(self, *states: StudyState) -> None:
        """Moves the study on."""
        with self.database.write() as session:
            for state in states:
                advance_study(session, session.get_one(Study, self.id), state, f"now {state}")
