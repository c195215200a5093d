"""A study in sentences: the winner, by how much, luck or not, what it cost, what went wrong. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.wording import counted, shortened
from service.reports.schemas import ReportView
from service.states import StudyState
from service.wording.standing import ENDED_STATES, counts_line, waits_for
from service.wording.values import difference, duration, number, one_line, share

MOST_REASONS = 3
_REASON = 200
"""Characters of a reason within a sentence."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An attempt that was lost."""

    trial: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Troubles:
    """What went wrong in a study."""

    failed: Sequence[tuple[int, str]] = ()
    """Trials that failed, and why."""
    diverged: int = 0
    out_of_memory: int = 0
    lost: Sequence[Loss] = ()
    resumed: int = 0
    """Attempts that went on from a checkpoint."""


def standing(report: ReportView) -> str:
    """How far the study is."""
    study = report.study
    ended = sum(getattr(study.counts, state) for state in ENDED_STATES)
    planned = (study.trials_requested or 0) + (study.repeats_requested if study.counts.repeats else 0)
    of = f"{ended:,} of {counted(planned, 'trial')}" if planned else counted(ended, "trial")
    why = shortened(one_line(study.reason), _REASON)
    if study.state == StudyState.COMPLETED:
        return f"The study has completed: {counts_line(study)}."
    if study.ended:
        return f"The study has {'failed' if study.state == StudyState.FAILED else 'been cancelled'}: {why}."
    if study.state == StudyState.PAUSED:
        return f"The study is paused: {why}. {of} ended so far."
    waits = shortened(one_line(waits_for(study)), _REASON)
    doing = {"range test": "testing the learning rate", "repeats": "repeating the best recipes"}
    stage = f", {doing[study.stage]}" if study.stage in doing else ""
    said = f": {waits}" if waits else stage
    return f"The study is {study.state}{said}. {of} ended so far."


def winner(report: ReportView, ranked: Sequence[tuple[int, float]]) -> str:
    """Which trial is the best, and by how much.

    Args:
        report: the study's.
        ranked: number and value of the search's completed trials that break no constraint, the best first.
    """
    best, study = report.best, report.study
    metric = study.metric or "value"
    if best is None or best.value is None:
        broken = any(constraint.broken for constraint in report.constraints)
        if broken:
            return "No completed trial meets the constraints."
        return "No trial has completed." if study.ended else "No trial has completed yet."
    judged = best.judgement
    if judged is not None and judged.decided_by == "repeats" and judged.candidates[0].mean is not None:
        first = judged.candidates[0]
        said = (
            f"Trial {best.number} is the best: {metric} {number(first.mean)} on average over"
            f" {counted(first.n, 'run')} with fresh seeds ({number(best.value)} in the search)"
        )
        second = judged.candidates[1] if len(judged.candidates) > 1 else None
        if second is None or second.mean is None or first.mean is None:
            return f"{said}."
        apart = difference(first.mean, second.mean, maximizes=study.maximizes)
        return f"{said}, {apart} than trial {second.trial_number} ({number(second.mean)})."
    said = f"Trial {best.number} is the best of {counted(len(ranked), 'completed trial')}"
    said += f": {metric} {number(best.value)}"
    others = [(trial, value) for trial, value in ranked if trial != best.number]
    if not others:
        return f"{said}."
    second_number, second_value = others[0]
    apart = difference(best.value, second_value, maximizes=study.maximizes)
    if best.value == second_value:
        return f"{said}, as trial {second_number}."
    said += f", {apart} than the second, trial {second_number} ({number(second_value)})"
    if len(others) > 1:
        last = others[-1][1]
        said += (
            f", and {difference(best.value, last, maximizes=study.maximizes)} than the last ({number(last)})"
        )
    return f"{said}."


def cost(report: ReportView) -> str:
    """What the study took, and what early ends saved."""
    spent = report.cost
    if report.seconds is None:
        return "It has not started, so it has cost nothing yet."
    on = (
        f"{spent.gpu_hours:.3g} GPU-hours"
        if spent.gpu_hours
        else f"{spent.worker_hours:.3g} worker-hours on CPUs"
    )
    took = "It took" if report.study.ended else "It has taken"
    saved = (
        f" Early ends saved {share(spent.saved_share)} of all training examples." if spent.saved_share else ""
    )
    return f"{took} {duration(report.seconds)} and {on}.{saved}"


def troubles(found: Troubles, *, ended: bool) -> list[str]:
    """What went wrong, a sentence for each kind; one sentence where nothing did."""
    said = []
    if found.failed:
        reasons = Counter(shortened(one_line(reason), _REASON) for _, reason in found.failed)
        listed = "; ".join(
            f"{reason} ({counted(count, 'trial')})" if len(reasons) > 1 else reason
            for reason, count in reasons.most_common(MOST_REASONS)
        )
        more = len(reasons) - MOST_REASONS
        rest = f"; and {counted(more, 'other reason')}" if more > 0 else ""
        said.append(f"{counted(len(found.failed), 'trial')} failed: {listed}{rest}.")
    if found.out_of_memory:
        said.append(f"{counted(found.out_of_memory, 'trial')} ran out of memory.")
    if found.diverged:
        said.append(f"{counted(found.diverged, 'trial')} diverged.")
    if found.lost:
        reasons = Counter(shortened(one_line(loss.reason), _REASON) for loss in found.lost)
        most, _ = reasons.most_common(1)[0]
        went_on = f"; {found.resumed} went on from a checkpoint" if found.resumed else ""
        said.append(f"{counted(len(found.lost), 'attempt was', 'attempts were')} lost ({most}){went_on}.")
    if said:
        return said
    return ["Nothing went wrong." if ended else "Nothing has gone wrong so far."]


def trend(sweeps: Sequence[tuple[str, float]], metric: str, *, maximizes: bool) -> list[str]:
    """How the latest sweep compares with earlier ones on the same data.

    Args:
        sweeps: name and best value of each, the oldest first.
        metric: the objective.
        maximizes: whether more is better.
    """
    if not sweeps:
        return []
    name, value = sweeps[-1]
    if len(sweeps) == 1:
        return [f"The latest result, {name}, has {metric} {number(value)}."]
    best_name, best = (max if maximizes else min)(sweeps[:-1], key=lambda sweep: sweep[1])
    apart = f"{difference(value, best, maximizes=maximizes)} than" if value != best else "the same as"
    return [
        f"The latest result, {name}, has {metric} {number(value)}: {apart} the best of the"
        f" {counted(len(sweeps) - 1, 'sweep')} before it on the same data ({best_name}, {number(best)})."
    ]
