"""Trials for people and programs: a table, the best one in full, and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from search_spaces.recipe import DEPENDENT_FIELDS
from service.cli.views.output import PAGE_WIDTH, console, fits, heading, indented, say, say_grid, table
from service.states import AttemptState
from service.studies.schemas import StudyView
from service.trials.schemas import BestView, TrialView
from service.wording.report_sections import download_command, front_grid, judgement_grid
from service.wording.values import duration, number, setting, settings_line


def show_trials(study: StudyView, trials: Sequence[TrialView], *, empty: str) -> None:
    """Writes a table of trials to stdout, with a column per hyperparameter if they fit on a line."""
    best = study.best.trial_number if study.best else None
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    first = ("trial", "state", heading(study.metric or "value"))

    def cells(trial: TrialView) -> list[object]:
        mark = " *" if trial.number == best else ""
        return [f"{trial.number}{mark}", trial.state, number(trial.value)]

    def values(trial: TrialView) -> list[str]:
        return [setting(trial.params[name]) if name in trial.params else "-" for name in names]

    def progress(trial: TrialView) -> list[object]:
        seconds, rung = trial.train_seconds, trial.best_rung
        return [
            trial.examples_seen,
            "-" if seconds is None else duration(seconds),
            "-" if rung is None else rung,
        ]

    def notes(trial: TrialView) -> list[str]:
        return [_verdicts(trial), "-" if trial.state == AttemptState.COMPLETED else trial.reason]

    columns: tuple[str, ...] = (*first, *map(heading, names), "examples")
    rows = [[*cells(trial), *values(trial), *progress(trial)] for trial in trials]
    repeated = any(not trial.searched for trial in trials)
    if repeated or not fits(columns, rows, pipe_width=PAGE_WIDTH):
        columns = (*first, "examples")
        rows = [[*cells(trial), *progress(trial), _settings(trial)] for trial in trials]
        last: tuple[str, ...] = ("time", "best rung", "hyperparameters", "diagnosis", "note")
    else:
        last = ("time", "best rung", "diagnosis", "note")
    table(
        (*columns, *last),
        [[*row, *notes(trial)] for row, trial in zip(rows, trials, strict=True)],
        empty=empty,
        optional=("time", "best rung"),
        pipe_width=PAGE_WIDTH,
    )


def _settings(trial: TrialView) -> str:
    """A trial's hyperparameters; of a repeat, the trial whose hyperparameters it has, and its seed; of
    an evaluation, what it evaluates."""
    if trial.repeat_of is not None:
        return f"trial {trial.repeat_of} again, seed={trial.seed}"
    if trial.evaluates is not None:
        whose = trial.evaluates
        return f"evaluates the {whose.role}, trial {whose.trial} of {whose.study}"
    return settings_line(trial.params)


def _verdicts(trial: TrialView) -> str:
    """The verdicts on a trial in short; `-` if there are none."""
    verdicts = [f.verdict.replace("_", " ") for f in trial.diagnosis if f.verdict != "not_enough_rungs"]
    broken = [] if trial.feasible else ["breaks a constraint"]
    return ", ".join([*broken, *verdicts]) or "-"


def show_best(study: StudyView, trial: BestView, dashboard_url: str) -> None:
    """Writes a study's best trial to stdout: value, recipe, curves, how sure it is, and its adapter."""
    out = console(pipe_width=PAGE_WIDTH)
    say(f"Trial {trial.number}  {study.metric} {number(trial.value)}")
    for name, value in (trial.metrics).items():
        if name != study.metric:
            say(f"  {name}  {number(value)}")
    for title, values in _recipe_parts(study, trial):
        say("", title)
        width = max(len(name) for name in values)
        for name, text in values.items():
            say(*indented(text, out, 2, first=f"  {name:<{width}}  "))
    say("")
    for finding in trial.diagnosis:
        say(*indented(f"Diagnosis: {finding.verdict.replace('_', ' ')}: {finding.evidence}", out, 0))
    if judged := trial.judgement:
        if any(candidate.runs for candidate in judged.candidates):
            say_grid(judgement_grid(judged, study.metric or "value"))
        say(*indented(judged.sentence, out, 0))
    if trial.pareto_front:
        say("Pareto front:")
        say_grid(front_grid(trial.pareto_front, study.metric or "value"))
    if trial.adapter:
        say("The adapter on the server:", f"  {trial.adapter.path}")
        say("Download it with:", f"  {download_command(study)}")
    say("The study in the dashboard:", f"  {dashboard_url}")


def _recipe_parts(study: StudyView, trial: TrialView) -> list[tuple[str, dict[str, str]]]:
    """Every hyperparameter of a trial as text, by where its value comes from."""
    recipe = {**(trial.recipe or {}), **trial.params}
    fixed = {"quantization", "max_length", *(study.definition.get("recipe") or {})} - set(trial.params)
    given = fixed | set(trial.params)
    parts: dict[str, dict[str, str]] = {"Searched": {}, "Fixed by the study": {}, "Defaults": {}}
    for name in [*trial.params, *(name for name in recipe if name not in trial.params)]:
        part = "Searched" if name in trial.params else "Fixed by the study" if name in fixed else "Defaults"
        text = setting(recipe[name])
        if name in DEPENDENT_FIELDS:
            parent, values = DEPENDENT_FIELDS[name]
            if parent in recipe and recipe[parent] not in values:
                text += f" (not used with {parent} {setting(recipe[parent])})"
        elif name == "lora_alpha" and part == "Defaults":
            text += " (lora_alpha_ratio x lora_r)"
        elif name == "lora_alpha_ratio" and part == "Defaults" and "lora_alpha" in given:
            text += " (lora_alpha / lora_r)"
        parts[part][name] = text
    return [(title, values) for title, values in parts.items() if values]


def trials_as_csv(trials: Sequence[TrialView]) -> str:
    """One row per trial.

    Searched hyperparameters are in `params.NAME`, fixed ones in `recipe.NAME`, metrics at the best rung in
    `metrics.NAME`.
    """
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    recipes = dict.fromkeys(name for trial in trials for name in trial.recipe or {})
    fixed = [name for name in recipes if name not in params]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "state", "value", "best_rung", "repeat_of", "seed", "evaluates", "feasible"]
        + [f"params.{name}" for name in params]
        + [f"recipe.{name}" for name in fixed]
        + [f"metrics.{name}" for name in metrics]
        + ["examples_seen", "train_seconds", "peak_memory_bytes", "predicted_memory_bytes"]
        + ["useful_token_share", "gradient_noise_scale", "diagnosis"]
        + ["started_at", "ended_at", "adapter", "reason"]
    )
    for trial in trials:
        cells: list[Any] = [trial.number, trial.state, trial.value, trial.best_rung]
        whose = None if trial.evaluates is None else trial.evaluates.role
        cells += [trial.repeat_of, trial.seed, whose, _cell(trial.feasible)]
        cells += [_cell(trial.params.get(name)) for name in params]
        cells += [_cell((trial.recipe or {}).get(name)) for name in fixed]
        cells += [(trial.metrics).get(name) for name in metrics]
        cells += [trial.examples_seen, trial.train_seconds, trial.peak_memory_bytes]
        cells += [trial.predicted_memory_bytes, trial.useful_token_share, trial.gradient_noise_scale]
        cells += [" ".join(finding.verdict for finding in trial.diagnosis)]
        cells += [at.isoformat() if at else None for at in (trial.started_at, trial.ended_at)]
        writer.writerow([*cells, trial.adapter.path if trial.adapter else None, trial.reason])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value
