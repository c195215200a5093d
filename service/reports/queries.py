"""Reading the parts of a study's report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from service.analysis import diagnosis, importance, outcomes
from service.analysis.gpu_hours import gpu_hours, worker_hours
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Attempt, Study
from service.definitions.stored import read_definition, read_preparation
from service.optuna_store.storage import Storage
from service.reports.advice import Advice, TrialFacts, advise
from service.reports.costs import count_examples
from service.reports.schemas import (
    AdviceView,
    ConstraintView,
    CostView,
    ImportanceView,
    ParetoFront,
    ReportView,
)
from service.states import AttemptState
from service.studies import queries as study_queries
from service.studies import results, standing
from service.trials.queries import best_of
from service.trials.records import StudyTrials, TrialRecord, read
from service.trials.schemas import BestView


def get_report(session: Session, storage: Storage, study: Study) -> ReportView:
    """Everything that a study has taught so far."""
    return report_on(session, storage, study, read(session, study, read_reports=False))


def report_on(session: Session, storage: Storage, study: Study, trials: StudyTrials) -> ReportView:
    """The same from trials that have been read, with rung reports or without."""
    now = database_now(session)
    winner = best_of(session, study)
    searched = [record for record in trials.records if record.values.searched]
    started = study.started_at
    return ReportView(
        made_at=now,
        study=study_queries.show(session, study),
        seconds=None if started is None else ((study.ended_at or now) - started).total_seconds(),
        best=winner,
        importance=get_importance(session, storage, study),
        verdicts=dict(diagnosis.tally(record.findings for record in searched)),
        constraints=_constraints(study, trials.definition, searched),
        advice=[AdviceView.model_validate(advice) for advice in _advice(study, trials, winner)],
        cost=_cost(trials.records, now),
    )


def get_importance(session: Session, storage: Storage, study: Study) -> ImportanceView:
    """Which hyperparameters of a study mattered.

    It takes a second where there are a thousand trials, so it is kept: of a large study that has ended with
    its row, else by this process until another trial has completed.
    """
    count = results.count_eligible(session, study)
    if study.importance is not None and study.importance["trials"] == count:
        return ImportanceView.model_validate(study.importance)
    kept = _KEPT.setdefault(session.get_bind(), {})
    if (study.id, count) not in kept:
        while len(kept) >= _MOST_KEPT:
            kept.pop(next(iter(kept)), None)
        kept[study.id, count] = find_importance(storage, study.name, read_definition(study))
    return kept[study.id, count]


_KEPT: WeakKeyDictionary[Engine | Connection, dict[tuple[str, int], ImportanceView]] = WeakKeyDictionary()
"""Of each database: study and the number of trials that it rests on -> importance."""
_MOST_KEPT = 200


def find_importance(storage: Storage, name: str, definition: StudyDefinition | None) -> ImportanceView:
    """The importance of a study's hyperparameters, read from Optuna's storage."""
    if definition is None:
        text = "This version cannot read the stored definition."
        return ImportanceView(parameters=[], trials=0, best_trials=0, sentence=text)
    found = importance.read_importance(
        storage,
        name,
        list(definition.search.space.parameters),
        minimize=definition.objective.direction == "minimize",
    )
    return ImportanceView.model_validate(found)


def get_pareto_front(session: Session, study: Study) -> ParetoFront:
    """The trials of a study that no other one beats in everything."""
    definition = read_definition(study)
    if definition is None:
        return ParetoFront(objectives=[], items=[])
    return ParetoFront(
        objectives=[definition.objective.metric, *definition.objective.costs],
        items=standing.pareto_points(definition, results.eligible(session, study)),
    )


def _advice(study: Study, trials: StudyTrials, winner: BestView | None) -> list[Advice]:
    if trials.definition is None or not trials.trained:
        return []
    judged = winner.judgement if winner is not None else None
    return advise(
        trials.definition,
        [facts for record in trials.records if (facts := _facts(record, winner)) is not None],
        preparation=read_preparation(study),
        winner=judged.winner if judged is not None and judged.decided_by == "repeats" else None,
        distinguishable=judged.distinguishable if judged is not None else None,
    )


def _facts(record: TrialRecord, winner: BestView | None) -> TrialFacts | None:
    """What advice looks at; None of a repeat, and of a trial whose end says nothing of its recipe."""
    if not record.values.searched or record.state not in _TELLING:
        return None
    return TrialFacts(
        number=record.number,
        state=AttemptState(record.state),
        params=record.params,
        recipe=record.recipe,
        value=record.values.value,
        feasible=record.values.feasible,
        findings=record.findings,
        # Of the others nothing is said, and their rung reports were not read.
        gradient_noise_scale=winner.gradient_noise_scale
        if winner is not None and winner.number == record.number
        else None,
    )


_TELLING = frozenset(
    {AttemptState.COMPLETED, AttemptState.PRUNED, AttemptState.DIVERGED, AttemptState.OUT_OF_MEMORY}
)


def _constraints(
    study: Study, definition: StudyDefinition | None, records: Sequence[TrialRecord]
) -> list[ConstraintView]:
    if definition is None or not definition.constraints:
        return []
    trained = [record for record in records if record.values.evaluates is None]
    completed = [record for record in trained if record.state == AttemptState.COMPLETED]
    measured = [
        outcomes.violations(definition, StudyKind(study.kind), record.outcome) for record in completed
    ]
    return [
        ConstraintView(name=name, broken=sum(found[name] > 0 for found in measured), completed=len(completed))
        for name in definition.constraints
    ]


def _cost(records: Sequence[TrialRecord], now: datetime) -> CostView:
    attempts: list[Attempt] = [attempt for record in records for attempt in record.attempts]
    examples = count_examples(records)
    return CostView(
        gpu_hours=gpu_hours(attempts, now),
        worker_hours=worker_hours(attempts, now),
        examples_trained=examples.trained,
        examples_saved_by_pruning=examples.saved_by_pruning,
        examples_saved_by_divergence=examples.saved_by_divergence,
        saved_share=examples.saved_share,
    )
