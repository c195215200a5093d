"""The live table of a study, as something that rich can draw. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search_spaces.wording import counted
from service.cli.views.output import heading
from service.states import AttemptState, StudyState
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import ENDED_STATES, counts_line, elapsed, standstill, waits_for
from service.wording.values import duration, number, one_line, setting, settings_line

_BAR_WIDTH = 8
_TABLE_HEADER = 2
_STATE_STYLES: dict[str, str] = {
    AttemptState.RUNNING: "cyan",
    AttemptState.COMPLETED: "green",
    AttemptState.PRUNED: "yellow",
    AttemptState.DIVERGED: "magenta",
    AttemptState.OUT_OF_MEMORY: "red",
    AttemptState.FAILED: "red",
}


def choose_rows(study: StudyView, trials: Sequence[TrialView], rows: int) -> list[TrialView]:
    """The trials to show in `rows` lines, by number.

    Unfinished trials come first; then the best trial; then the others, newest end first.
    """
    best = study.best.trial_number if study.best else None
    unfinished = [trial for trial in trials if not trial.finished]
    finished = sorted(
        (trial for trial in trials if trial.finished),
        key=lambda trial: (
            trial.number == best,
            trial.ended_at.timestamp() if trial.ended_at else 0.0,
            trial.number,
        ),
        reverse=True,
    )
    return sorted((unfinished + finished)[: max(0, rows)], key=lambda trial: trial.number)


def render(
    study: StudyView, trials: Sequence[TrialView], now: datetime, height: int, *, message: str = ""
) -> RenderableType:
    """The study as a table at most `height` lines high, one line per trial.

    Args:
        study: The study.
        trials: All its trials.
        now: The time that `elapsed` counts to.
        height: Lines of the terminal.
        message: Shown beneath the table, for example that the server does not answer.
    """
    lines: list[RenderableType] = [_header(study, now), _best(study)]
    stands = standstill(study)
    if study.state == StudyState.PAUSED and study.reason:
        stands = f"{study.reason}; {stands}"
    below = [_line(text, "bold yellow") for text in (waits_for(study), stands, message) if text]
    # One line stays free: a terminal scrolls when its last line is filled.
    rows = height - 1 - len(lines) - len(below) - _TABLE_HEADER
    shown = list(trials) if len(trials) <= rows else choose_rows(study, trials, rows - 1)
    if shown:
        lines.append(_table(study, shown))
    if hidden := len(trials) - len(shown):
        lines.append(_line(f"{counted(hidden, 'more trial')}: nightsweep trials {study.name}", "dim"))
    return Group(*lines, *below)


def _header(study: StudyView, now: datetime) -> Text:
    ended = sum(getattr(study.counts, state) for state in ENDED_STATES)
    # Repeats are planned for; until the search has ended they are not certain to come.
    planned = study.trials_requested or 0
    if study.counts.repeats:
        planned += study.repeats_requested
    of = f"{ended}/{planned}" if planned else str(ended)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(study.name, "bold")
    stage = f" ({study.stage})" if study.stage in ("range test", "repeats") else ""
    line.append(f"  {study.state}{stage}", _STATE_STYLES.get(study.state, "cyan"))
    line.append(f"  {of} trials ended  {duration(elapsed(study, now))}  {counts_line(study)}")
    return line


def _best(study: StudyView) -> Text:
    if study.best is None:
        return _line(study.reason if study.ended else f"best {study.metric}: none yet", "dim")
    best = study.best
    value = f"best {study.metric} {number(best.value)}"
    if best.mean is not None:
        value += f" (mean of {counted(best.n, 'repeat')}: {number(best.mean)})"
    return _line(f"{value}: trial {best.trial_number}  {settings_line(best.params)}", "green")


def _table(study: StudyView, trials: Sequence[TrialView]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    # Only the hyperparameters' columns give way when the terminal is narrow.
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=9)  # steady while states come and go
    table.add_column("progress", no_wrap=True, min_width=_BAR_WIDTH)
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("last rung", justify="right", no_wrap=True, min_width=10)
    table.add_column(_heading(study.metric or "value"), justify="right", no_wrap=True, min_width=6)
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for name in params:
        table.add_column(_heading(name), justify="right")
    best = study.best.trial_number if study.best else None
    for trial in trials:
        table.add_row(
            _number(trial),
            Text(trial.state, _STATE_STYLES.get(trial.state, "")),
            _bar(trial),
            _examples(trial),
            _last_rung(trial),
            number(trial.value),
            *(_line(setting(trial.params[name]) if name in trial.params else "-") for name in params),
            style="bold" if trial.number == best else "",
        )
    return table


def _number(trial: TrialView) -> str:
    if trial.evaluates is not None:
        return f"{trial.number} ({trial.evaluates.role})"
    return str(trial.number) if trial.repeat_of is None else f"{trial.number} (={trial.repeat_of})"


def _heading(name: str) -> Text:
    return Text(heading(name), no_wrap=True, overflow="ellipsis")


def _bar(trial: TrialView) -> RenderableType:
    if trial.finished or trial.progress is None:
        return ""
    return ProgressBar(
        total=trial.progress.total_examples or 1, completed=trial.progress.examples_seen, width=_BAR_WIDTH
    )


def _examples(trial: TrialView) -> str:
    total = trial.progress.total_examples if trial.progress else None
    return f"{trial.examples_seen}/{total}" if total else "-"


def _last_rung(trial: TrialView) -> str:
    if not trial.rungs:
        return "-"
    last = trial.rungs[-1]
    return f"{number(last.value)}@{last.rung}"


def _line(text: str, style: str = "") -> Text:
    return Text(one_line(text), style, no_wrap=True, overflow="ellipsis")
