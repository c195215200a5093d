"""What a person wants to know when a study has ended."""

from __future__ import annotations

from datetime import UTC, datetime

from service.cli.views.changes import Snapshot
from service.cli.views.live_table import counts_line, elapsed
from service.cli.views.output import duration, number, one_line, setting
from service.states import AttemptState, StudyState
from service.trials.schemas import TrialView


def best_trial(snapshot: Snapshot) -> TrialView | None:
    best = snapshot.study.best
    if best is None:
        return None
    return next((trial for trial in snapshot.trials if trial.number == best.trial_number), None)


def worst_completed_trial(snapshot: Snapshot) -> TrialView | None:
    """The search's completed trial with the worst value, by the study's direction."""
    completed = [
        (trial.value, trial)
        for trial in snapshot.trials
        if trial.state == AttemptState.COMPLETED and trial.value is not None and trial.repeat_of is None
    ]
    if not completed:
        return None
    choose = min if snapshot.study.maximizes else max
    return choose(completed, key=lambda pair: pair[0])[1]


def comparison(snapshot: Snapshot) -> str | None:
    """How the worst completed trial compares with the best one; None when fewer than two completed."""
    best, worst = best_trial(snapshot), worst_completed_trial(snapshot)
    if best is None or worst is None or best.number == worst.number:
        return None
    if best.value is None or worst.value is None:
        return None
    line = f"trial {worst.number}  {snapshot.study.metric} {number(worst.value)}"
    if worst.value == 0:
        return line
    share = abs(best.value - worst.value) / abs(worst.value)
    return f"{line}: the best is {share:.1%} {'higher' if best.value > worst.value else 'lower'}"


def summary(snapshot: Snapshot, dashboard_url: str) -> list[str]:
    """How the study ended, its best trial with its hyperparameters, and where to find the rest."""
    study = snapshot.study
    took = f" in {duration(elapsed(study, datetime.now(UTC)))}" if study.started_at else ""
    lines = [
        f"Study {study.name} {study.state}{took}" + (f": {one_line(study.reason)}" if study.reason else ""),
        f"  Trials      {counts_line(study)}",
    ]
    best = best_trial(snapshot)
    if best is None:
        lines.append("  Best trial  none completed")
    else:
        lines.append(f"  Best trial  {best.number}  {study.metric} {number(best.value)}")
        width = max((len(name) for name in best.params), default=0)
        lines += [f"    {name:<{width}}  {setting(value)}" for name, value in best.params.items()]
        if study.best is not None and study.best.sentence:
            lines.append(f"  Repeats     {one_line(study.best.sentence)}")
        if study.pareto_front:
            numbers = ", ".join(str(point.trial_number) for point in study.pareto_front)
            lines.append(f"  Pareto      trials {numbers}")
        if best.adapter is not None:
            lines.append(f"  Adapter     {best.adapter.path}")
    if study.state == StudyState.FAILED:
        lines += _failures(snapshot)
    lines.append(f"  Dashboard   {dashboard_url}")
    return lines


def _failures(snapshot: Snapshot) -> list[str]:
    """The distinct reasons why trials failed, which a failed study's own reason may only count."""
    reasons = dict.fromkeys(
        one_line(trial.reason)
        for trial in snapshot.trials
        if trial.state == AttemptState.FAILED and trial.reason
    )
    return [f"  Failure     {reason}" for reason in list(reasons)[:3] if reason not in snapshot.study.reason]
