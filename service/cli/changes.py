"""What changed between two looks at a study, one plain line per change: for logs and pipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.cli.live_table import counts_line
from service.cli.output import number, one_line, settings_line
from service.client import Study, Trial
from service.states import AttemptState


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study and its trials at one moment."""

    study: Study
    trials: Sequence[Trial]


def changes(before: Snapshot | None, after: Snapshot) -> list[str]:
    """The lines that lead from `before` (None: nothing was seen yet) to `after`, trials by number."""
    lines: list[str] = []
    study = after.study
    if before is None or before.study.state != study.state:
        line = f"study {study.name} {study.state}"
        if study.ended:
            line += f": {counts_line(study)}"
        lines.append(line + (f" ({one_line(study.reason)})" if study.reason else ""))
    known = {trial.number: trial for trial in before.trials} if before else {}
    # The study's own end is the last line, after the ends of its trials.
    of_trials: list[str] = []
    for trial in after.trials:
        of_trials += _trial_changes(known.get(trial.number), trial, study)
    return of_trials + lines if study.ended else lines + of_trials


def _trial_changes(before: Trial | None, after: Trial, study: Study) -> list[str]:
    lines: list[str] = []
    if before is not None and before.state == after.state and len(before.rungs) == len(after.rungs):
        return lines
    name = f"trial {after.number}"
    running = after.state == AttemptState.RUNNING
    if running and (before is None or before.state != after.state):
        lines.append(f"{name} running {settings_line(after.params)}".rstrip())
    for rung in after.rungs[len(before.rungs) if before else 0 :]:
        lines.append(f"{name} at {rung.rung} examples {study.metric} {number(rung.value)}")
    if not running and (before is None or before.state != after.state):
        lines.extend(_end_line(name, after, study))
    return lines


def _end_line(name: str, trial: Trial, study: Study) -> list[str]:
    if trial.state == AttemptState.COMPLETED:
        return [f"{name} completed {study.metric} {number(trial.value)}"]
    if trial.finished or trial.state == AttemptState.LOST:
        where = f" at {trial.examples_seen} examples" if trial.examples_seen else ""
        reason = f": {one_line(trial.reason)}" if trial.reason else ""
        return [f"{name} {trial.state}{where}{reason}"]
    return []  # waiting or dispatched: it has not begun
