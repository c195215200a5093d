"""A plan for people: sections of short lines, examples with their masked part dimmed, warnings at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search_spaces.data_report import DataReport, DecodedExample
from search_spaces.tasks import TASKS
from search_spaces.wording import counted
from service.cli.views.output import console, say
from service.cli.views.plan_lines import (
    Line,
    balance_line,
    baseline_line,
    cluster_lines,
    memory_lines,
    span,
    split_lines,
    time_lines,
    training_lines,
    trial_lines,
)
from service.plans.schemas import PlanView, PlanWarning, TrainingPlan
from service.wording.values import one_line, printable

_LABEL = 18
_MASKED = "dim"
_SUPERVISED = "bold"
_EVERY = "Problem. Every trial would fail"
_WHO = {
    "model": _EVERY,
    "data": _EVERY,
    "recipe": "Warning. Trials with these recipes would fail",
    "host": "Unknown. The machine that made this plan cannot read it, but the workers may be able to",
}
_PLAIN_WIDTH = 100
"""Columns where the output is no terminal."""


def show_plan(plan: PlanView) -> None:
    """Writes a plan to stdout."""
    out = console()
    if out.is_terminal:
        _show(out, plan)
        return
    out.width = min(out.width, _PLAIN_WIDTH)
    with out.capture() as captured:
        _show(out, plan)
    say(*(line.rstrip() for line in captured.get().splitlines()))


def _show(out: Console, plan: PlanView) -> None:
    out.print(Text(f"Plan of {printable(plan.name)}", style="bold"))
    _section(out, "Trials", trial_lines(plan.trials))
    if plan.data is not None:
        _show_data(out, plan.data)
    if plan.report_unknown is not None:
        _section(out, "Data and model", [("unknown", plan.report_unknown)])
    if plan.training is not None:
        _section(out, "Training, if no trial ends early", training_lines(plan.training))
        _show_steps(out, plan.training)
    elif plan.report_unknown is None:
        _section(out, "Training", [("unknown", plan.training_unknown or "")])
    _section(out, "Memory", memory_lines(plan.memory))
    _section(out, "Time", time_lines(plan.time))
    _section(out, "Cluster", cluster_lines(plan.cluster))
    _show_findings(out, plan)


def _show_data(out: Console, data: DataReport) -> None:
    splits = [
        (name, split) for name, split in (("train", data.train), ("eval", data.eval)) if split is not None
    ]
    if splits:
        _heading(out, f"Data ({'task' if data.format in TASKS else 'format'}: {data.format or 'unknown'})")
        table = Table(box=None, pad_edge=False, show_header=True, header_style="", padding=(0, 2, 0, 0))
        table.add_column("", min_width=_LABEL - 2)
        for name, _ in splits:
            table.add_column(name, justify="right")
        of_language = data.format not in TASKS or data.format == "seq2seq_lm"
        cells = [dict(split_lines(split, of_language=of_language)) for _, split in splits]
        for label in dict.fromkeys(label for split in cells for label in split):
            table.add_row(label, *(split.get(label, "-") for split in cells))
        out.print(Padding(table, (0, 0, 0, 2), expand=False))
        if data.overlap_rows is not None:
            _lines(out, [("overlap", f"{counted(data.overlap_rows, 'eval row')} found in the train data")])
        for name, split in splits:
            for what, balance in (("labels", split.labels), ("tasks", split.tasks)):
                if balance is not None:
                    _lines(out, [(f"{name} {what}", balance_line(balance))])
        if data.baseline is not None:
            _lines(out, [("baseline", baseline_line(data.baseline))])
    if data.examples:
        legend = (
            "dim: masked, bold: carries loss"
            if out.is_terminal
            else "[[...]] carries loss, the rest is masked"
        )
        _heading(out, f"The first training examples ({legend})")
        for example in data.examples:
            _show_example(out, example)


def _show_example(out: Console, example: DecodedExample) -> None:
    place = printable(example.place.rpartition("/")[2])
    out.print(Padding(Text(f"{place}, {counted(example.tokens, 'token')}"), (0, 0, 0, 2), expand=False))
    text = Text()
    for segment in example.segments:
        if out.is_terminal:
            text.append(printable(segment.text), style=_SUPERVISED if segment.supervised else _MASKED)
        else:
            shown = printable(segment.text)
            text.append(f"[[{shown}]]" if segment.supervised else shown)
    out.print(Padding(text, (0, 0, 0, 4), expand=False))


def _show_steps(out: Console, training: TrainingPlan) -> None:
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for column in ("batch size", "optimizer steps", "warm-up steps"):
        table.add_column(column, justify="right")
    for row in training.steps:
        table.add_row(f"{row.batch_size:,}", span(row.steps), span(row.warmup_steps))
    out.print(Padding(table, (0, 0, 0, 2), expand=False))


def _show_findings(out: Console, plan: PlanView) -> None:
    for problem in plan.problems:
        who = _EVERY if problem.every_trial else _WHO[problem.about]
        _finding(out, f"{who}: {problem.message}", "bold red" if problem.every_trial else "yellow")
    for warning in plan.warnings:
        _finding(out, _warning(warning), "yellow")
    if not plan.problems and not plan.warnings:
        out.print()
        out.print(Text("No warnings."))


def _warning(warning: PlanWarning) -> str:
    return f"Warning ({warning.code}). {warning.message}"


def _finding(out: Console, message: str, style: str) -> None:
    out.print()
    out.print(Text(one_line(message), style=style))


def _heading(out: Console, title: str) -> None:
    out.print()
    out.print(Text(title, style="bold cyan"))


def _section(out: Console, title: str, lines: Sequence[Line] | Iterator[Line]) -> None:
    _heading(out, title)
    _lines(out, lines)


def _lines(out: Console, lines: Sequence[Line] | Iterator[Line]) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=_LABEL - 2)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(label, Text(one_line(value)))
    out.print(Padding(grid, (0, 0, 0, 2), expand=False))
