"""One study for people: its page, and its summary when it has ended."""

from __future__ import annotations

from datetime import UTC, datetime

from service.cli.views.output import console, indented, say
from service.states import AttemptState, StudyState
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import StudySnapshot, best_trial, counts_line, elapsed
from service.wording.values import difference, duration, moment, number, one_line, setting, settings_line


def show_study(found: StudyView, dashboard_url: str) -> None:
    """Writes a study's page to stdout."""
    definition = found.definition
    requested = "all" if found.trials_requested is None else found.trials_requested
    rows: list[tuple[str, object]] = [
        ("name", found.name),
        ("id", found.id),
        ("state", f"{found.state}: {one_line(found.reason)}" if found.reason else found.state),
        ("trials", f"{counts_line(found)}; {requested} requested"),
        ("owner", found.owner or "-"),
        ("tags", " ".join(found.tags) or "-"),
        ("created", moment(found.created_at)),
        ("started", moment(found.started_at)),
        ("ended", moment(found.ended_at)),
        ("schedule", f"{found.schedule}, for {moment(found.fired_for)}" if found.schedule else "-"),
        ("task", found.task or definition.get("task", "-")),
        ("objective", f"{definition['objective']['direction']} {found.metric}"),
        ("model", definition["model"]["id"]),
    ]
    if found.archived_at:
        rows.append(("archived", moment(found.archived_at)))
    if found.deleted_at:
        until = (
            f"{moment(found.deleted_at)} by {found.deleted_by}; restorable until {moment(found.removal_at)}"
        )
        rows.append(("deleted", until))
    if found.note:
        rows.append(("note", one_line(found.note)))
    if found.base_seed is not None:
        seed = definition.get("search", {}).get("seed")
        rows.append(("seed", f"{seed}, derived from the schedule's seed {found.base_seed} and its time"))
    if found.stage:
        rows.insert(3, ("stage", found.stage))
    if found.paused_at:
        rows.append(("paused", moment(found.paused_at)))
    elif found.deadline and not found.ended:
        rows.append(("until", moment(found.deadline)))
    if found.preparation:
        rows += [("prepared", one_line(note)) for note in found.preparation.notes]
    if found.best:
        best = found.best
        rows.append(
            ("best", f"{number(best.value)}, trial {best.trial_number}: {settings_line(best.params)}")
        )
        if best.sentence:
            rows.append(("repeats", one_line(best.sentence)))
    rows.append(("dashboard", dashboard_url))
    out = console()
    for label, value in rows:
        say(*indented(str(value), out, 0, first=f"{label:<10}  "))
    say(f"The whole definition: nightsweep show {found.name} --json")


def _worst_completed_trial(snapshot: StudySnapshot) -> TrialView | None:
    """The search's completed trial with the worst value, by the study's direction."""
    completed = [
        (trial.value, trial)
        for trial in snapshot.trials
        if trial.state == AttemptState.COMPLETED and trial.value is not None and trial.searched
    ]
    if not completed:
        return None
    choose = min if snapshot.study.maximizes else max
    return choose(completed, key=lambda pair: pair[0])[1]


def comparison(snapshot: StudySnapshot) -> str | None:
    """How the worst completed trial compares with the best one; None when fewer than two completed."""
    best, worst = best_trial(snapshot), _worst_completed_trial(snapshot)
    if best is None or worst is None or best.number == worst.number:
        return None
    if best.value is None or worst.value is None:
        return None
    line = f"trial {worst.number}  {snapshot.study.metric} {number(worst.value)}"
    how = difference(best.value, worst.value, maximizes=snapshot.study.maximizes)
    return f"{line}: the best is {how}"


def summary(snapshot: StudySnapshot, dashboard_url: str) -> list[str]:
    """How the study ended, its best trial with its hyperparameters, and where to find the rest."""
    study = snapshot.study
    took = f" in {duration(elapsed(study, datetime.now(UTC)))}" if study.started_at else ""
    lines = [
        f"Study {study.name} {study.state}{took}" + (f": {one_line(study.reason)}" if study.reason else ""),
        f"  Trials      {counts_line(study)}",
    ]
    best = best_trial(snapshot)
    if best is None:
        lines.append("  Best trial  no trial has completed")
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


def _failures(snapshot: StudySnapshot) -> list[str]:
    """The distinct reasons why trials failed, which a failed study's own reason may only count."""
    reasons = dict.fromkeys(
        one_line(trial.reason)
        for trial in snapshot.trials
        if trial.state == AttemptState.FAILED and trial.reason
    )
    return [f"  Failure     {reason}" for reason in list(reasons)[:3] if reason not in snapshot.study.reason]
