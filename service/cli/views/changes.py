"""What changed between two snapshots of a study, one plain line per change, for logs and pipes."""

from __future__ import annotations

from service.states import TRAINING, UNFINISHED_ATTEMPT_STATES, AttemptState
from service.studies.schemas import StudyView
from service.trials.schemas import RungView, TrialView
from service.wording.standing import StudySnapshot, counts_line, standstill
from service.wording.values import number, one_line, settings_line


def changes(before: StudySnapshot | None, after: StudySnapshot) -> list[str]:
    """The lines for what changed from `before` to `after`, with trials by number.

    Without a `before`, the lines say how everything is now, and nothing about earlier rungs.
    """
    lines: list[str] = []
    study = after.study
    if before is None or before.study.state != study.state:
        line = f"study {study.name} {study.state}"
        if study.ended:
            line += f": {counts_line(study)}"
        lines.append(line + (f" ({one_line(study.reason)})" if study.reason else ""))
    elif not study.ended and study.reason != before.study.reason and study.reason != TRAINING:
        lines.append(f"study {study.name}: {one_line(study.reason)}")
    stands = standstill(study)
    if stands and (before is None or stands != standstill(before.study)):
        lines.append(f"study {study.name}: {stands}")
    known = {trial.number: trial for trial in before.trials} if before else {}
    of_trials: list[str] = []
    for trial in after.trials:
        earlier = known.get(trial.number)
        known_rungs = len(trial.rungs) if before is None else len(earlier.rungs) if earlier else 0
        of_trials += _trial_changes(earlier.state if earlier else None, known_rungs, trial, study)
    # The study's own end is the last line, after the ends of its trials.
    return of_trials + lines if study.ended else lines + of_trials


def _trial_changes(state: str | None, known_rungs: int, trial: TrialView, study: StudyView) -> list[str]:
    """What is new about a trial that was in `state` and whose first `known_rungs` rungs are known."""
    name = f"trial {trial.number}"
    running = trial.state == AttemptState.RUNNING
    lines: list[str] = []
    if running and state != trial.state:
        lines.append(f"{name} running: {settings_line(trial.params)}" if trial.params else f"{name} running")
    for rung in trial.rungs[known_rungs:]:
        lines.append(f"{name} at {rung.rung} examples: {_measured(rung, study)}")
    if not running and state != trial.state:
        lines.extend(_end_line(name, trial, study))
    return lines


def _measured(rung: RungView, study: StudyView) -> str:
    """The objective, or where only the end has one the eval loss."""
    loss = rung.metrics.get("eval_loss")
    if rung.value is None and loss is not None:
        return f"eval_loss {number(loss)}"
    return f"{study.metric} {number(rung.value)}"


def _end_line(name: str, trial: TrialView, study: StudyView) -> list[str]:
    if trial.state == AttemptState.COMPLETED:
        return [f"{name} completed: {study.metric} {number(trial.value)}"]
    if trial.finished or trial.state in UNFINISHED_ATTEMPT_STATES:
        where = f" at {trial.examples_seen} examples" if trial.examples_seen else ""
        reason = f": {one_line(trial.reason)}" if trial.reason else ""
        return [f"{name} {trial.state}{where}{reason}"]
    return []  # waiting or dispatched: it has not begun
