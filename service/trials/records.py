"""Trials with all that is known of them: their rows, attempts and rung reports."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from search_spaces.definition import ObjectiveSpec, StudyDefinition, build_recipe
from search_spaces.errors import SearchSpaceError
from search_spaces.recipe import Recipe
from service.analysis.curves import Curve, Rung
from service.analysis.diagnosis import Finding, Verdict
from service.db.kinds import StudyKind
from service.db.models import Attempt, RungReport, Study, Trial, TrialStop
from service.db.trials import WAITS
from service.definitions.stored import read_definition, shown_params
from service.optuna_store.telling import OUTCOME_ATTR, REASON_ATTR
from service.optuna_store.values import TrialValues
from service.states import UNFINISHED_ATTEMPT_STATES, WAITING, AttemptState, TrialState
from service.studies.results import values_of

DIAGNOSED = frozenset({AttemptState.COMPLETED, AttemptState.PRUNED, AttemptState.DIVERGED})
"""States of trials of which the diagnosis says something."""

_FEW = 500
"""Trials that are named one by one in a query; of more, all of the study are read."""

Row = TypeVar("Row", Trial, Attempt, RungReport)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """All that is known of one trial."""

    values: TrialValues
    attempts: Sequence[Attempt]
    """Oldest first."""
    reports: Mapping[int, RungReport]
    """By rung."""
    params: Mapping[str, Any]
    """As people wrote them."""
    recipe: Recipe | None
    """None while the sampler is choosing, and where the parameters make no recipe."""
    ended: tuple[AttemptState, str] | None = None
    """How and why it ended, where an event says so and Optuna need not know it yet."""
    findings: Sequence[Finding] = ()
    """The verdicts on it."""
    diagnosed: bool = False
    """Whether these have been made."""
    stop_requested: bool = False
    """Somebody wanted it to end, whether it then did for that reason or not."""

    @property
    def number(self) -> int:
        return self.values.number

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What the last attempt ended with, as its worker said it."""
        return (self.last.outcome if self.last else None) or {}

    @property
    def state(self) -> TrialState:
        return self._standing[0]

    @property
    def reason(self) -> str:
        return self._standing[1]

    @property
    def value(self) -> float | None:
        """The objective. The coordinator records an end before it tells Optuna."""
        if self.values.value is None and self.last is not None and self.last.state == AttemptState.COMPLETED:
            value: float | None = self.outcome.get("value")
            return value
        return self.values.value

    @property
    def rungs(self) -> list[tuple[int, float | None]]:
        """Each rung, ascending, with the objective; None where it was not measured there."""
        values = dict(self.values.rungs)
        return [(rung, values.get(rung)) for rung in sorted({*values, *self.reports})]

    @property
    def examples_seen(self) -> int:
        """By the last attempt: what an earlier one did beyond its checkpoint was done again."""
        return self.last.examples_seen if self.last else 0

    @property
    def total_examples(self) -> int | None:
        return next((a.total_examples for a in reversed(self.attempts) if a.total_examples), None)

    @property
    def gradient_noise_scale(self) -> float | None:
        """At the end, or else at the last rung."""
        found = self.outcome.get("gradient_noise_scale")
        if found is None and self.reports:
            found = self.reports[max(self.reports)].gradient_noise_scale
        return finite(found)

    @cached_property
    def _standing(self) -> tuple[TrialState, str]:
        """The latest attempt's state; but a trial can end without an attempt of that state.

        Such as one whose worker was lost too often, or that waited or was paused when its study ended.
        """
        values, last = self.values, self.last
        if last is None or last.state in UNFINISHED_ATTEMPT_STATES:
            outcome = values.user_attrs.get(OUTCOME_ATTR) if values.state != "running" else None
            if self.ended is not None and outcome in (None, self.ended[0]):
                return self.ended[0], self.ended[1]
            if outcome is not None:
                return AttemptState(outcome), str(values.user_attrs.get(REASON_ATTR, ""))
        if last is None:
            return WAITING, WAITS
        return AttemptState(last.state), last.reason

    def curve(self, objective: ObjectiveSpec | None) -> Curve | None:
        """What diagnosis looks at; None before the first attempt.

        Args:
            objective: the study's, whose values Optuna has; None: not known.
        """
        if not isinstance(self.state, AttemptState):
            return None
        by_loss = objective is not None and objective.metric == "eval_loss"
        sign = -1.0 if objective is not None and objective.direction == "maximize" else 1.0
        rungs = []
        for rung, measured in self.rungs:
            report, value = self.reports.get(rung), finite(measured)
            loss = finite(report.metrics.get("eval_loss")) if report else None
            loss = value if loss is None and by_loss else loss
            if loss is not None:
                rungs.append(
                    Rung(
                        examples=rung,
                        eval_loss=loss,
                        train_loss=finite(report.train_loss) if report else None,
                        objective=None if by_loss or objective is None or value is None else sign * value,
                    )
                )
        return Curve(
            number=self.number,
            state=self.state,
            reason=self.reason,
            recipe=self.recipe,
            rungs=rungs,
            total_examples=self.total_examples,
        )


@dataclass(frozen=True, kw_only=True)
class StudyTrials:
    """The trials of one study, by number."""

    definition: StudyDefinition | None
    records: Sequence[TrialRecord]
    trained: bool = True
    """Whether its trials are trainings; those of a range test are sweeps, and have no curve of their own."""

    def curves(self) -> list[Curve]:
        """Of the trials of which the diagnosis says something."""
        objective = None if self.definition is None else self.definition.objective
        trained = [record for record in self.records if self.trained and record.values.evaluates is None]
        ended = [record for record in trained if record.state in DIAGNOSED]
        return [curve for record in ended if (curve := record.curve(objective)) is not None]


def read(
    session: Session,
    study: Study,
    numbers: Collection[int] | None = None,
    *,
    read_reports: bool = True,
) -> StudyTrials:
    """Trials of a study as the service's tables have them.

    Args:
        session: reads.
        study: whose trials.
        numbers: which ones; None: all.
        read_reports: whether rung reports are needed.
    """
    rows = session.scalars(_of(Trial, Trial.number, study, numbers).order_by(Trial.number)).all()
    found = {row.number: row for row in rows if numbers is None or row.number in numbers}
    trials = join(
        session, study, [values_of(row) for row in found.values()], numbers, read_reports=read_reports
    )
    stops = set(session.scalars(select(TrialStop.trial_number).where(TrialStop.study_id == study.id)))
    records = [
        replace(
            record,
            findings=findings_of(found[record.number].findings),
            diagnosed=found[record.number].findings is not None,
            stop_requested=record.number in stops,
        )
        for record in trials.records
    ]
    return replace(trials, records=records)


def join(
    session: Session,
    study: Study,
    values: Iterable[TrialValues],
    numbers: Collection[int] | None = None,
    *,
    read_reports: bool,
    ended: Mapping[int, tuple[AttemptState, str]] | None = None,
) -> StudyTrials:
    """These trials with their attempts and rung reports.

    Args:
        session: reads.
        study: whose trials.
        values: what is known of them in Optuna, or in their rows.
        numbers: theirs; None: they are all of the study.
        read_reports: whether rung reports are needed.
        ended: how those ended that ended without an attempt.
    """
    definition = read_definition(study)
    attempts: dict[int, list[Attempt]] = {}
    for attempt in session.scalars(
        _of(Attempt, Attempt.trial_number, study, numbers).order_by(Attempt.ordinal)
    ):
        attempts.setdefault(attempt.trial_number, []).append(attempt)
    reports: dict[int, dict[int, RungReport]] = {}
    if read_reports:
        for report in session.scalars(_of(RungReport, RungReport.trial_number, study, numbers)):
            reports.setdefault(report.trial_number, {})[report.rung] = report
    return StudyTrials(
        definition=definition,
        trained=study.kind == StudyKind.SEARCH,
        records=[
            TrialRecord(
                values=each,
                attempts=attempts.get(each.number, []),
                reports=reports.get(each.number, {}),
                params=shown_params(definition, each.params),
                recipe=_recipe(definition, each),
                ended=(ended or {}).get(each.number),
            )
            for each in values
        ],
    )


def _of(
    table: type[Row], column: InstrumentedAttribute[int], study: Study, numbers: Collection[int] | None
) -> Select[Row]:
    query = select(table).where(table.study_id == study.id)
    return query if numbers is None or len(numbers) > _FEW else query.where(column.in_(numbers))


def findings_of(stored: Sequence[Any] | None) -> list[Finding]:
    """What a row says of a trial's diagnosis."""
    return [
        Finding(verdict=Verdict(verdict), evidence=said, rung=rung) for verdict, said, rung in stored or ()
    ]


def _recipe(definition: StudyDefinition | None, values: TrialValues) -> Recipe | None:
    if values.evaluates is not None:
        return recipe_evaluated(values.evaluates)
    if definition is None or set(values.params) != set(definition.search.space.active(values.params)):
        return None  # asked for, and not yet fully drawn
    try:
        recipe = build_recipe(definition, values.params)
    except SearchSpaceError:
        return None  # parameters that make no recipe fail the trial, with the reason
    return recipe if values.seed is None else recipe.model_copy(update={"seed": values.seed})


def recipe_evaluated(evaluates: Mapping[str, Any]) -> Recipe | None:
    """The recipe of the adapter that a trial evaluates; None: another version wrote it."""
    try:
        return Recipe.model_validate(evaluates["recipe"])
    except (KeyError, ValidationError):
        return None


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
