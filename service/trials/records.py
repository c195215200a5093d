"""A study's trials, read once and from everywhere: Optuna, attempts and rung reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import ObjectiveSpec, StudyDefinition, build_recipe
from search_spaces.errors import SearchSpaceError
from search_spaces.recipe import Recipe
from service.analysis.curves import Curve, Rung
from service.analysis.diagnosis import Finding, Peers, diagnose
from service.db.kinds import StudyKind
from service.db.models import Attempt, RungReport, Study
from service.definitions.stored import read_definition, shown_params
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_trials
from service.optuna_store.telling import OUTCOME_ATTR, REASON_ATTR
from service.optuna_store.values import TrialValues
from service.states import UNFINISHED_ATTEMPT_STATES, AttemptState

TrialState = AttemptState | Literal["waiting"]


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

        The end of one whose worker was lost too often, or that waited or was paused when its study ended, is
        in Optuna alone.
        """
        values, last = self.values, self.last
        outcome = values.user_attrs.get(OUTCOME_ATTR)
        if (
            outcome is not None
            and values.state != "running"
            and (last is None or last.state in UNFINISHED_ATTEMPT_STATES)
        ):
            return AttemptState(outcome), str(values.user_attrs.get(REASON_ATTR, ""))
        if last is None:
            return "waiting", "waiting for a free slot"
        return AttemptState(last.state), last.reason

    def curve(self, objective: ObjectiveSpec | None) -> Curve | None:
        """What diagnosis looks at; None before the first attempt.

        Args:
            objective: the study's, whose values Optuna has; None: not known.
        """
        if self.state == "waiting":
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
    _diagnoses: dict[int, list[Finding]] = field(default_factory=dict, init=False)

    def diagnosis(self, number: int) -> list[Finding]:
        """The verdicts on a trial."""
        if not self._diagnoses and self.trained:
            objective = None if self.definition is None else self.definition.objective
            curves = [curve for record in self.records if (curve := record.curve(objective)) is not None]
            # Only trials that ended are compared with, so that a verdict does not change from look to look.
            ended = (AttemptState.COMPLETED, AttemptState.PRUNED)
            peers = Peers(curve for curve in curves if curve.state in ended)
            self._diagnoses.update({curve.number: diagnose(curve, peers) for curve in curves})
        return self._diagnoses.get(number, [])


def read(session: Session, storage: Storage, study: Study) -> StudyTrials:
    """All trials of a study."""
    definition = read_definition(study)
    attempts: dict[int, list[Attempt]] = {}
    query = select(Attempt).where(Attempt.study_id == study.id).order_by(Attempt.ordinal)
    for attempt in session.scalars(query):
        attempts.setdefault(attempt.trial_number, []).append(attempt)
    reports: dict[int, dict[int, RungReport]] = {}
    for report in session.scalars(select(RungReport).where(RungReport.study_id == study.id)):
        reports.setdefault(report.trial_number, {})[report.rung] = report
    return StudyTrials(
        definition=definition,
        trained=study.kind == StudyKind.SEARCH,
        records=[
            TrialRecord(
                values=values,
                attempts=attempts.get(values.number, []),
                reports=reports.get(values.number, {}),
                params=shown_params(definition, values.params),
                recipe=_recipe(definition, values),
            )
            for values in read_trials(storage, study.name)
        ],
    )


def _recipe(definition: StudyDefinition | None, values: TrialValues) -> Recipe | None:
    if definition is None or set(values.params) != set(definition.search.space.active(values.params)):
        return None  # asked for, and not yet fully drawn
    try:
        recipe = build_recipe(definition, values.params)
    except SearchSpaceError:
        return None  # parameters that make no recipe fail the trial, with the reason
    return recipe if values.seed is None else recipe.model_copy(update={"seed": values.seed})


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
