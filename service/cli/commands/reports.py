"""Commands about what a study has taught: best, report, importance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import CommandError
from service.cli.options import Json, Server, StudyName, connect
from service.cli.views.output import PAGE_WIDTH, console, indented, say, say_grid, say_json, say_note
from service.cli.views.report_text import markdown, show_report
from service.cli.views.trials import show_best
from service.client import DEFAULT_SERVER
from service.wording.report_sections import importance_grid, sections


def best(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show the best completed trial: value, recipe, adapter, and whether its lead is more than luck."""
    with connect(server) as client:
        trial = client.best(study)
        found = client.study(study)
        dashboard = client.dashboard_url(found)
    if as_json:
        say_json(trial.document())
        return
    show_best(found, trial, dashboard)


def importance(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show how important each hyperparameter is, by PED-ANOVA."""
    with connect(server) as client:
        found = client.importance(study)
    if as_json:
        say_json(found.document())
        return
    if found.parameters:
        say_grid(importance_grid(found))
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
    """Report on a study: best trials, hyperparameter importance, diagnoses, advice and cost."""
    if file is not None and as_json:
        raise CommandError("--markdown and --json cannot be used together")
    with connect(server) as client:
        found = client.report(study)
        trials = [] if as_json else client.trials(found.study.id)
        server_address = client.server
    if as_json:
        say_json(found.document())
        return
    parts = sections(found, trials, server_address)
    if file is None:
        show_report(parts)
        return
    if str(file) == "-":
        typer.echo(markdown(parts), nl=False)
        return
    try:
        file.write_text(markdown(parts), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from error
    say_note(f"The report is in {file}")
