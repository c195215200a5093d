"""Commands about what a study has taught: best, report, importance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from service.cli.errors import CommandError
from service.cli.options import DEFAULT_SERVER, Json, Server, StudyName, connect
from service.cli.output import console, number, say, say_json, say_note, setting, settings_line, table
from service.cli.report_text import chance, markdown, mean_and_spread, share
from service.client import Best


def best(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show the best completed trial: value, recipe, adapter, and whether its lead is real."""
    with connect(server) as client:
        trial = client.best(study)
        metric = client.study(study).metric
    if as_json:
        say_json(trial.document())
        return
    say(f"Trial {trial.number}  {metric} {number(trial.value)}")
    for name, value in (trial.metrics or {}).items():
        if name != metric:
            say(f"  {name}  {number(value)}")
    recipe = trial.recipe or {}
    shown = dict(trial.params) | {key: value for key, value in recipe.items() if key not in trial.params}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        say(f"  {name:<{width}}  {setting(value)}{'  (searched)' if name in trial.params else ''}")
    for finding in trial.diagnosis:
        say(f"Its curves: {finding.verdict.replace('_', ' ')}: {finding.evidence}")
    _say_judgement(trial, metric)
    _say_front(trial, metric)
    if trial.adapter:
        say(f"Adapter on the server: {trial.adapter.path}")
        say(f"Fetch it with: nightsweep adapter {study}")


def importance(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show which hyperparameters set the best trials apart, by PED-ANOVA."""
    with connect(server) as client:
        found = client.importance(study)
    if as_json:
        say_json(found.document())
        return
    table(
        ("hyperparameter", "importance", "beside chance"),
        [(p.name, share(p.importance), chance(p)) for p in found.parameters],
        empty="No hyperparameters.",
    )
    say(found.sentence)


def report(
    study: StudyName,
    file: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write it as Markdown.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Report what a study has taught: winner, importance, verdicts, advice and cost."""
    if file is not None and as_json:
        raise CommandError("--markdown and --json exclude each other")
    with connect(server) as client:
        found = client.report(study)
    if as_json:
        say_json(found.document())
        return
    text = markdown(found)
    if file is None:
        if sys.stdout.isatty():
            console().print(Markdown(text))
        else:
            say(text.rstrip("\n"))
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from error
    say_note(f"The report is in {file}")


def _say_judgement(trial: Best, metric: str) -> None:
    judged = trial.judgement
    if judged is None:
        return
    if any(candidate.runs for candidate in judged.candidates):
        table(
            ("trial", f"{metric} in the search", "mean of repeats", "runs"),
            [(c.trial_number, number(c.value), mean_and_spread(c), c.n) for c in judged.candidates],
            empty="",
        )
    say(judged.sentence)


def _say_front(trial: Best, metric: str) -> None:
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
    )
