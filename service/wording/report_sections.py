"""A study's report in sections, whatever they are written as. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search_spaces.wording import counted
from service.reports.schemas import ImportanceView, ParameterImportanceView, ReportView
from service.studies.schemas import ParetoPoint, StudyView
from service.trials.schemas import CandidateView, JudgementView, TrialView
from service.wording.standing import best_first, counts_line
from service.wording.values import duration, moment, number, settings_line, share

_TOP = 5
"""Trials in the list of the best."""
_LONGEST_NAME = 45
_VERDICT_MEANINGS = {
    "diverged": "the loss or a gradient was not finite, or the loss exploded",
    "learning_rate_too_high": "the loss went up and down, or a trial with a gentler recipe did much better",
    "learning_rate_too_low": "the loss was still falling about as fast as at first",
    "overfitting": "the eval loss rose while the train loss fell",
    "plateaued_early": "the second half of the training brought almost no improvement",
    "under_trained": "the loss was still falling when the training ended",
    "not_enough_rungs": "too few evaluations to judge the curve",
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a list."""

    label: str = ""
    text: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report: sentences, points with or without a label, and tables, in this order of reading."""

    key: str
    title: str
    blocks: Sequence[str | Grid | Point]


def sections(report: ReportView, trials: Sequence[TrialView], server: str | None) -> list[Section]:
    """The whole report.

    Args:
        report: What the study has taught.
        trials: Its trials.
        server: The server's address, for the dashboard's; None: that is not named.
    """
    study = report.study
    found = [
        ("study", study.name, _head(report, server)),
        ("best", "Best trial", _best(report)),
        ("top", "The best trials", _top(report, trials)),
        ("front", "Pareto front", _front(report)),
        ("importance", "Hyperparameter importance", _importance(report)),
        ("diagnosis", "Diagnosis", _verdicts(report)),
        ("advice", "Advice", _advice(report)),
        ("cost", "Cost", _cost(report)),
    ]
    whole = [Section(key=key, title=title, blocks=list(blocks)) for key, title, blocks in found]
    return [section for section in whole if section.blocks]


def judgement_grid(judged: JudgementView, metric: str) -> Grid:
    """The best recipes with their repeats."""
    return Grid(
        columns=("trial", f"{metric} in the search", "mean ± sd of repeats", "repeats"),
        rows=[(c.trial_number, number(c.value), _mean(c), c.n) for c in judged.candidates],
    )


def front_grid(front: Sequence[ParetoPoint], metric: str) -> Grid:
    """The trials that no other trial dominates."""
    costs = list(front[0].costs)
    return Grid(
        columns=("trial", metric, *costs, "hyperparameters"),
        rows=[
            (
                point.trial_number,
                number(point.value),
                *(number(point.costs.get(cost)) for cost in costs),
                settings_line(point.params),
            )
            for point in front
        ],
    )


def importance_grid(importance: ImportanceView) -> Grid:
    """How much each hyperparameter mattered, and whether that is more than chance, or why it is not known."""
    return Grid(
        columns=("hyperparameter", "importance", "above chance"),
        rows=[(p.name, share(p.importance), _above_chance(p)) for p in importance.parameters],
    )


def download_command(study: StudyView) -> str:
    """What downloads the best adapter; with the study's id where its name would not fit a line."""
    return f"nightsweep adapter {study.name if len(study.name) <= _LONGEST_NAME else study.id}"


def _head(report: ReportView, server: str | None) -> Iterator[Point]:
    study = report.study
    ended = f", ended {moment(study.ended_at)}" if study.ended_at else f", as of {moment(report.made_at)}"
    stage = f" ({study.stage})" if study.stage else ""
    yield Point(label="State", text=f"{study.state}{stage}" + (f": {study.reason}" if study.reason else ""))
    if report.seconds is not None:
        yield Point(label="Time", text=f"{duration(report.seconds)}{ended}")
    beside = [(study.counts.repeats, "repeat"), (study.counts.evaluations, "evaluation")]
    what = " and ".join(counted(number, noun) for number, noun in beside if number)
    yield Point(label="Trials", text=counts_line(study) + (f", of which {what}" if what else ""))
    yield Point(label="Task", text=str(study.task or study.definition.get("task", "-")))
    yield Point(label="Model", text=str(study.definition["model"]["id"]))
    yield Point(label="Objective", text=f"{study.definition['objective']['direction']} {study.metric}")
    prepared = study.preparation
    if prepared is not None and prepared.learning_rate_bounds is not None:
        low, high = prepared.learning_rate_bounds
        test = f" of the range test {study.range_test}" if study.range_test else ""
        yield Point(label="Learning rate", text=f"searched from {low:.3g} to {high:.3g}, the bounds{test}")
    if prepared is not None and (prepared.enqueued or prepared.prior):
        first, known = counted(prepared.enqueued, "recipe"), counted(prepared.prior, "result")
        text = f"{first} of an earlier study evaluated first, {known} given to the sampler"
        yield Point(label="Warm start", text=text)
    for note in prepared.notes if prepared is not None else ():
        yield Point(label="Preparation", text=note)
    if server is not None:
        yield Point(label="Dashboard", text=f"{server}{study.dashboard_path or '/dashboard'}")


def _best(report: ReportView) -> Iterator[str | Grid | Point]:
    best, metric = report.best, report.study.metric
    if best is None:
        broken = any(constraint.broken for constraint in report.constraints)
        yield "No completed trial meets the constraints." if broken else "No trial has completed."
        return
    yield f"Trial {best.number}, {metric} {number(best.value)}: {settings_line(best.params)}"
    judged = best.judgement
    if judged is not None:
        if any(candidate.runs for candidate in judged.candidates):
            yield judgement_grid(judged, metric or "value")
        yield judged.sentence
    if best.adapter is not None:
        yield Point(label="Adapter", text=best.adapter.path)
        yield Point(label="Download", text=download_command(report.study))


def _top(report: ReportView, trials: Sequence[TrialView]) -> Iterator[Grid]:
    found = best_first(report.study, trials)[:_TOP]
    if len(found) > 1:
        yield Grid(
            columns=("trial", report.study.metric or "value", "examples", "hyperparameters"),
            rows=[(t.number, number(t.value), t.examples_seen, settings_line(t.params)) for t in found],
        )


def _front(report: ReportView) -> Iterator[str | Grid]:
    front = report.study.pareto_front
    if not front:
        return
    yield "For each of these trials, no other one is at least as good in all columns and better in one."
    yield front_grid(front, report.study.metric or "value")


def _importance(report: ReportView) -> Iterator[str | Grid]:
    found = report.importance
    if any(p.importance is not None for p in found.parameters):
        yield importance_grid(found)
    yield found.sentence


def _verdicts(report: ReportView) -> Iterator[Grid]:
    if report.verdicts:
        yield Grid(
            columns=("verdict", "trials", "meaning"),
            rows=[
                (name.replace("_", " "), count, _VERDICT_MEANINGS.get(name, ""))
                for name, count in report.verdicts.items()
            ],
        )


def _advice(report: ReportView) -> Iterator[Point]:
    for advice in report.advice:
        yield Point(text=advice.sentence)
    for constraint in report.constraints:
        if constraint.broken:
            count = f"{constraint.broken} of {constraint.completed}"
            yield Point(text=f"{count} completed trials break the constraint {constraint.name}.")


def _cost(report: ReportView) -> Iterator[Point]:
    cost = report.cost
    yield Point(text=f"{cost.gpu_hours:.3g} GPU-hours, {cost.worker_hours:.3g} worker-hours")
    saved = cost.examples_saved_by_pruning, cost.examples_saved_by_divergence
    part = f" ({share(cost.saved_share)} of all)" if cost.saved_share else ""
    yield Point(
        text=f"{cost.examples_trained:,} training examples; early ends saved {sum(saved):,} more{part}:"
        f" {saved[0]:,} by pruning and {saved[1]:,} by divergence"
    )


def _mean(candidate: CandidateView) -> str:
    """`0.412 ± 0.008`; `-` without a repeat that completed."""
    if candidate.mean is None:
        return "-"
    deviation = candidate.standard_deviation
    return number(candidate.mean) + (f" ± {number(deviation)}" if deviation is not None else "")


def _above_chance(parameter: ParameterImportanceView) -> str:
    if parameter.above_chance is None:
        return parameter.reason or "-"
    return "yes" if parameter.above_chance else "no"
