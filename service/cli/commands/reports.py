"""Commands about what a study has taught: best, report, importance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from search_spaces.recipe import DEPENDENT_FIELDS
from service.cli.errors import CommandError
from service.cli.options import DEFAULT_SERVER, Json, Server, StudyName, connect
from service.cli.views.output import (
    PAGE_WIDTH,
    console,
    indented,
    number,
    say,
    say_json,
    say_note,
    setting,
    settings_line,
    table,
)
from service.cli.views.report_text import (
    chance,
    download_command,
    markdown,
    mean_and_spread,
    sections,
    share,
    show,
)
from service.studies.schemas import StudyView
from service.trials.schemas import BestView, TrialView


def best(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show the best completed trial: its value, recipe and adapter, and whether its lead is real."""
    with connect(server) as client:
        trial = client.best(study)
        found = client.study(study)
        dashboard = client.dashboard_url(found)
    if as_json:
        say_json(trial.document())
        return
    out = console(pipe_width=PAGE_WIDTH)
    say(f"Trial {trial.number}  {found.metric} {number(trial.value)}")
    for name, value in (trial.metrics or {}).items():
        if name != found.metric:
            say(f"  {name}  {number(value)}")
    for title, values in recipe_parts(found, trial):
        say("", title)
        width = max(len(name) for name in values)
        for name, text in values.items():
            say(*indented(text, out, 2, first=f"  {name:<{width}}  "))
    say("")
    for finding in trial.diagnosis:
        say(*indented(f"Its curves: {finding.verdict.replace('_', ' ')}: {finding.evidence}", out, 0))
    _say_judgement(trial, found.metric or "value", out)
    _say_front(trial, found.metric or "value")
    if trial.adapter:
        say("Its adapter, on the server:", f"  {trial.adapter.path}")
        say("Download it with:", f"  {download_command(found)}")
    say("Its study in the dashboard:", f"  {dashboard}")


def recipe_parts(study: StudyView, trial: TrialView) -> list[tuple[str, dict[str, str]]]:
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


def importance(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show which hyperparameters set the best trials apart, by PED-ANOVA."""
    with connect(server) as client:
        found = client.importance(study)
    if as_json:
        say_json(found.document())
        return
    table(
        ("hyperparameter", "importance", "above chance"),
        [(p.name, share(p.importance), chance(p)) for p in found.parameters],
        empty="No hyperparameters.",
    )
    say(*indented(found.sentence, console(pipe_width=PAGE_WIDTH), 0))


def report(
    study: StudyName,
    file: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write Markdown to this file; - is stdout.",
            show_default=False,
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Report on a study: its best trials, what mattered, what the curves say, advice and cost."""
    if file is not None and as_json:
        raise CommandError("--markdown and --json exclude each other")
    with connect(server) as client:
        found = client.report(study)
        trials = [] if as_json else client.trials(found.study.id)
        server_address = client.server
    if as_json:
        say_json(found.document())
        return
    parts = sections(found, trials, server_address)
    if file is None:
        show(parts)
        return
    if str(file) == "-":
        typer.echo(markdown(parts), nl=False)
        return
    try:
        file.write_text(markdown(parts), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from error
    say_note(f"The report is in {file}")


def _say_judgement(trial: BestView, metric: str, out: Console) -> None:
    judged = trial.judgement
    if judged is None:
        return
    if any(candidate.runs for candidate in judged.candidates):
        table(
            ("trial", f"{metric} in the search", "mean of repeats", "runs"),
            [(c.trial_number, number(c.value), mean_and_spread(c), c.n) for c in judged.candidates],
            empty="",
            pipe_width=PAGE_WIDTH,
        )
    say(*indented(judged.sentence, out, 0))


def _say_front(trial: BestView, metric: str) -> None:
    if not trial.pareto_front:
        return
    costs = list(trial.pareto_front[0].costs)
    say("Pareto front:")
    table(
        ("trial", metric, *costs, "hyperparameters"),
        [
            (
                point.trial_number,
                number(point.value),
                *(number(point.costs.get(cost)) for cost in costs),
                settings_line(point.params),
            )
            for point in trial.pareto_front
        ],
        empty="",
        pipe_width=PAGE_WIDTH,
    )
