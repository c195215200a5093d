"""A study's report as a page: what is read for it, and in which parts it is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.analysis.best import completed
from service.analysis.gpu_hours import busy
from service.db.kinds import StudyKind
from service.db.models import Study
from service.optuna_store.storage import Storage
from service.pages.figures.curves import TrialCurve, by_interest, curves_figure
from service.pages.figures.front import Costed, front_figures
from service.pages.figures.importance import importance_figure
from service.pages.figures.parallel import TrialPoint, parallel_figure
from service.pages.figures.progress import Ended, Meter, Spent, progress_figure
from service.pages.figures.range_test import range_test_figure
from service.pages.figures.style import Figure
from service.pages.figures.timeline import AttemptSpan, timeline_figure
from service.pages.parts import Part, part
from service.pages.recipes import recipe_yaml
from service.pages.summary import Loss, Troubles, cost, standing, troubles, winner
from service.range_tests import queries as range_tests
from service.range_tests.schemas import RangeTestView
from service.reports.queries import report_on
from service.reports.schemas import ReportView
from service.states import AttemptState
from service.studies.queries import get_study
from service.trials.records import StudyTrials, TrialRecord, read
from service.trials.views import trial_view
from service.wording.report_sections import download_command, sections

_TOP = 5
"""Trials of the list of the best, which has as many in a terminal."""


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """What the page of a study shows."""

    report: ReportView
    summary: Sequence[str]
    """The first one says how the study stands."""
    recipe: str | None
    """The best one as YAML; None while there is none."""
    download: str | None
    """The command that downloads the best adapter; None where none is kept."""
    parts: Sequence[Part]

    @property
    def watched(self) -> list[str]:
        """Addresses whose answers change with what the page shows; none once nothing changes any more."""
        study = self.report.study
        if study.ended:
            return []
        at = f"/v1/studies/{study.id}"
        return [at, f"{at}/trials?state=running&fields=number&fields=rungs"]


def read_page(session: Session, storage: Storage, study: Study) -> StudyPage:
    """Everything that the page of a search shows, read once."""
    trials = read(session, study, read_reports=False)
    if not any(_curve(record) for record in trials.records):
        trials = read(session, study)  # measured at the end alone: its eval loss is shown in its place
    report = report_on(session, storage, study, trials)
    ranked = _ranked(trials, report)
    best = report.best
    return StudyPage(
        report=report,
        summary=[
            standing(report),
            winner(report, [(record.number, _value(record)) for record in ranked]),
            *([best.judgement.sentence] if best is not None and best.judgement is not None else []),
            cost(report),
            *troubles(_troubles(trials.records), ended=report.study.ended),
        ],
        recipe=None if best is None else recipe_yaml(report.study.definition, best.params),
        download=None if best is None or best.adapter is None else download_command(report.study),
        parts=list(_parts(session, study, trials, report, ranked)),
    )


def _parts(
    session: Session, study: Study, trials: StudyTrials, report: ReportView, ranked: Sequence[TrialRecord]
) -> Iterator[Part]:
    """In the order of reading: results, how they came about, what to do next, what it cost."""
    top = [trial_view(study, trials.definition, record) for record in ranked[:_TOP]]
    found = {section.key: section for section in sections(report, top, None)}
    ordered: list[tuple[str, str, list[Figure | None]]] = [
        ("best", "Best trial", []),
        ("top", "The best trials", []),
        ("progress", "How the best value was found", _progress(trials, report, ranked)),
        ("curves", "Curves", [_curves(trials, report, ranked)]),
        ("front", "Pareto front", list(_front(trials, report, ranked))),
        ("importance", "Hyperparameters", [importance_figure(report.importance), _parallel(trials, ranked)]),
        ("range-test", "Range test", [_range_test(session, study)]),
        ("diagnosis", "Diagnosis", []),
        ("advice", "Advice", []),
        ("attempts", "Who ran what", [timeline_figure(_spans(trials.records), report.made_at)]),
        ("cost", "Cost", []),
        ("study", "The study", []),
    ]
    for key, title, figures in ordered:
        section = found.get(key)
        made = part(key, title, () if section is None else section.blocks, figures)
        if made is not None:
            yield made


def _ranked(trials: StudyTrials, report: ReportView) -> list[TrialRecord]:
    """The search's completed trials that break no constraint, the best first, and the winner before them."""
    if trials.definition is None:
        return []
    records = {record.number: record for record in trials.records}
    values = completed(trials.definition, [record.values for record in trials.records])
    first = report.best.number if report.best is not None else None
    return [records[each.number] for each in sorted(values, key=lambda each: each.number != first)]


def _value(record: TrialRecord) -> float:
    value = record.values.value
    return math.nan if value is None else value


def _curve(record: TrialRecord) -> list[tuple[int, float]]:
    return [(rung, value) for rung, value in record.values.rungs if math.isfinite(value)]


def _losses(record: TrialRecord) -> list[tuple[int, float]]:
    """The eval loss at each rung, where the objective is not measured there."""
    found = [(rung, report.metrics.get("eval_loss")) for rung, report in sorted(record.reports.items())]
    return [(rung, float(loss)) for rung, loss in found if loss is not None and math.isfinite(loss)]


def _curves(trials: StudyTrials, report: ReportView, ranked: Sequence[TrialRecord]) -> Figure | None:
    metric = report.study.metric or "value"
    measured = any(_curve(record) for record in trials.records)
    curves = [
        TrialCurve(
            number=record.number,
            state=str(record.state) if record.values.repeat_of is None else "repeat",
            points=_curve(record) if measured else _losses(record),
        )
        for record in trials.records
        if record.values.evaluates is None
    ]
    places = {record.number: place for place, record in enumerate(ranked)}
    best = report.best.number if report.best is not None else None
    return curves_figure(by_interest(curves, places), metric if measured else "eval_loss", best)


def _progress(trials: StudyTrials, report: ReportView, ranked: Sequence[TrialRecord]) -> list[Figure | None]:
    """The best value so far against training examples and against hours of GPUs, or of workers on CPUs."""
    ended = [
        Ended(number=record.number, at=record.last.ended_at, value=_value(record))
        for record in ranked
        if record.last is not None and record.last.ended_at is not None
    ]
    attempts = [attempt for record in trials.records for attempt in record.attempts]
    now = report.made_at
    examples = [
        Spent(
            start=a.started_at, end=a.ended_at or now, amount=max(0, a.examples_seen - a.resumed_at_examples)
        )
        for a in attempts
        if a.started_at is not None
    ]
    on_gpus = report.cost.gpu_hours > 0
    hours = [
        Spent(start=span.start, end=span.end, amount=span.hours * (span.gpus if on_gpus else 1.0))
        for span in busy(attempts, now)
    ]
    minimize = not report.study.maximizes
    metric = report.study.metric or "value"
    return [
        progress_figure(ended, Meter(spent), metric=metric, minimize=minimize, unit=unit, key=key)
        for spent, unit, key in (
            (examples, "training examples", "best-by-examples"),
            (hours, "GPU-hours" if on_gpus else "worker-hours", "best-by-hours"),
        )
    ]


def _front(trials: StudyTrials, report: ReportView, ranked: Sequence[TrialRecord]) -> list[Figure]:
    front = report.study.pareto_front
    if not front:
        return []
    costed = [
        Costed(number=record.number, value=_value(record), costs=record.values.values[1:])
        for record in ranked
    ]
    return front_figures(costed, front, report.study.metric or "value")


def _parallel(trials: StudyTrials, ranked: Sequence[TrialRecord]) -> Figure | None:
    if trials.definition is None:
        return None
    first = {record.number for record in ranked}
    others = [r for r in trials.records if r.number not in first and r.values.searched]
    points = [
        TrialPoint(
            number=record.number,
            state=str(record.state),
            params=record.params,
            value=record.values.value if record.number in first else None,
        )
        for record in (*ranked, *others)
        if record.params and record.state != "waiting"
    ]
    objective = trials.definition.objective
    return parallel_figure(
        points,
        trials.definition.search.space.parameters,
        str(objective.metric),
        minimize=objective.direction == "minimize",
    )


def _range_test(session: Session, study: Study) -> Figure | None:
    if study.range_test_id is None:
        return None
    test = get_study(session, study.range_test_id)
    return range_test_figure(range_tests.show(session, test)) if test.kind == StudyKind.RANGE_TEST else None


def _spans(records: Sequence[TrialRecord]) -> list[AttemptSpan]:
    return [
        AttemptSpan(
            trial=record.number,
            ordinal=attempt.ordinal,
            worker=attempt.worker_id,
            device=attempt.device,
            state=attempt.state,
            reason=attempt.reason,
            sent=attempt.dispatched_at,
            started=attempt.started_at,
            ended=attempt.ended_at,
            resumed_at=attempt.resumed_at_examples,
        )
        for record in records
        for attempt in record.attempts
    ]


def _troubles(records: Sequence[TrialRecord]) -> Troubles:
    states: Mapping[AttemptState, list[TrialRecord]] = {
        state: [record for record in records if record.state == state]
        for state in (AttemptState.FAILED, AttemptState.DIVERGED, AttemptState.OUT_OF_MEMORY)
    }
    attempts = [attempt for record in records for attempt in record.attempts]
    return Troubles(
        failed=[(record.number, record.reason) for record in states[AttemptState.FAILED]],
        diverged=len(states[AttemptState.DIVERGED]),
        out_of_memory=len(states[AttemptState.OUT_OF_MEMORY]),
        lost=[Loss(trial=a.trial_number, reason=a.reason) for a in attempts if a.state == AttemptState.LOST],
        resumed=sum(a.resumed_at_examples > 0 for a in attempts),
    )


@dataclass(frozen=True, kw_only=True)
class RangeTestPage:
    """What the page of a range test shows."""

    test: RangeTestView
    figure: Figure | None

    @property
    def watched(self) -> list[str]:
        return [] if self.test.ended else [f"/v1/range-tests/{self.test.id}"]


def read_range_test(session: Session, study: Study) -> RangeTestPage:
    """Everything that the page of a range test shows."""
    test = range_tests.show(session, study)
    return RangeTestPage(test=test, figure=range_test_figure(test))
