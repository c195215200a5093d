"""Schedules for people: their pages and what became of their firings."""

from __future__ import annotations

from collections.abc import Sequence

from service.cli.views.output import say, table
from service.schedules.schemas import Firings, ScheduleEventView, ScheduleView, SweepRun
from service.wording.values import moment, number, one_line, setting

MADE_NO_SWEEP = ("skipped", "missed", "queued", "continued", "failed")
"""Kinds of events of firings that made no sweep, or not yet."""


def show_schedule(schedule: ScheduleView) -> None:
    """Writes a schedule's page to stdout."""
    say(
        f"Schedule {schedule.name} ({'enabled' if schedule.enabled else 'disabled'})",
        f"  Id            {schedule.id}",
        f"  Cron          {schedule.cron} ({schedule.timezone})",
        f"  From, to      {schedule.start or '-'}, {schedule.end or '-'}",
        f"  Next firing   {moment(schedule.next_fire_at)}",
        f"  Last firing   {moment(schedule.last_fired_for)}",
        f"  Seed          {schedule.definition.get('search', {}).get('seed', '-')}",
        f"  Overlap       {schedule.overlap}",
        f"  Catch up      {schedule.catch_up}",
        f"  Window        {_window(schedule)}",
        f"  Sweep names   {schedule.sweep_name or '-'}",
        f"  Repeats       {_repeats(schedule)}",
        f"  Champion      {'each sweep competes with it' if schedule.champion else 'none wanted'}",
        f"  Studies       {schedule.studies}",
        f"  Last sweep    {_sweep(schedule)}",
        f"  Last skipped  {_skip(schedule)}",
        f"  Waiting       {_waiting(schedule)}",
        f"  Owner         {schedule.owner or '-'}",
    )


def show_runs(sweeps: Sequence[SweepRun], missed: Sequence[ScheduleEventView], limit: int) -> None:
    """Writes a table of sweeps and of the firings that made none to stdout, newest first."""
    rows = [*((study.created_at, _run(study)) for study in sweeps), *((e.at, _missed(e)) for e in missed)]
    newest = sorted(rows, key=lambda row: row[0], reverse=True)[:limit]
    table(
        ("study", "for", "state", "trials", "best", "GPU-hours", "reason"),
        [row for _, row in newest],
        empty="No sweeps.",
    )


def show_firings(firings: Firings, count: int) -> None:
    """Writes a table of the next firings to stdout."""
    table(
        (f"local ({firings.timezone})", "offset", "UTC", "note"),
        [
            (firing.local.replace("T", " "), firing.offset, moment(firing.at), firing.note or "-")
            for firing in firings.items
        ],
        empty="Nothing fires any more.",
    )
    if firings.items and len(firings.items) < count:
        say("Nothing fires after that.")
    if not firings.enabled:
        say("The schedule is disabled: it fires at these times once it is enabled.")


def what_changed(event: ScheduleEventView) -> str:
    """What an event of a schedule was, in one line."""
    if not event.changes:
        return event.message
    return "; ".join(
        f"{key}: {setting(change.get('from'))} -> {setting(change.get('to'))}"
        for key, change in event.changes.items()
    )


def _window(schedule: ScheduleView) -> str:
    if schedule.until is None:
        return "-"
    return f"until {schedule.until}, then {schedule.until_action}"


def _waiting(schedule: ScheduleView) -> str:
    if schedule.queued_for is None:
        return "-"
    return f"the firing of {moment(schedule.queued_for)}, for the end of an earlier sweep"


def _repeats(schedule: ScheduleView) -> str:
    if schedule.repeat_configurations:
        return "configurations are evaluated again in each sweep"
    return "no configuration is evaluated again on the same data"


def _skip(schedule: ScheduleView) -> str:
    skip = schedule.last_skipped
    return "-" if skip is None else f"{moment(skip.fired_for)}: {one_line(skip.reason)}"


def _run(study: SweepRun) -> tuple[object, ...]:
    best = "-" if study.best is None else f"{number(study.best.value)} (trial {study.best.trial_number})"
    trials = study.counts.total - study.counts.repeats - study.counts.evaluations
    hours = number(study.gpu_hours)
    return study.name, moment(study.fired_for), study.state, trials, best, hours, study.reason


def _missed(event: ScheduleEventView) -> tuple[object, ...]:
    return "-", moment(event.fired_for), event.kind, "-", "-", "-", event.message


def _sweep(schedule: ScheduleView) -> str:
    sweep = schedule.last_sweep
    if sweep is None:
        return "-"
    return f"{sweep.name} {sweep.state}" + (f": {one_line(sweep.reason)}" if sweep.reason else "")
