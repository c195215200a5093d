"""Commands about what a study has taught: best, report, importance."""

from __future__ import annotations

import io
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
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study's name or id.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="Write a page with plots to this file, which needs no other; - is stdout.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", metavar="NAME", help="Report on a schedule; needs -o.", show_default=False
        ),
    ] = None,
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
    """Report on a study: best trials, hyperparameter importance, diagnoses, advice and cost.

    The same, with plots, is a page of the server: /reports/studies/STUDY, and /reports/schedules/NAME.
    """
    _require_one(study, schedule, output=output, file=file, as_json=as_json)
    if output is not None:
        _save(study, schedule, output, server)
        return
    assert study is not None
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
    _write(file, markdown(parts).encode())


def _require_one(
    study: str | None, schedule: str | None, *, output: Path | None, file: Path | None, as_json: bool
) -> None:
    wanted = {"--output": output is not None, "--markdown": file is not None, "--json": as_json}
    forms = [name for name, given in wanted.items() if given]
    if len(forms) > 1:
        raise CommandError(f"{forms[0]} and {forms[1]} cannot be used together")
    if (study is None) == (schedule is None):
        raise CommandError("name either a study or, with --schedule, a schedule")
    if schedule is not None and output is None:
        raise CommandError("the report of a schedule is a page: give --output FILE.html")


def _save(study: str | None, schedule: str | None, output: Path, server: str) -> None:
    """Fetch the page before the file is touched: one that cannot be made leaves an earlier one as it is."""
    page = io.BytesIO()
    with connect(server) as client:
        if study is not None:
            client.save_report(study, page)
        elif schedule is not None:
            client.save_schedule_report(schedule, page)
    if str(output) == "-":
        typer.echo(page.getvalue(), nl=False)
        return
    _write(output, page.getvalue())


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from error
    say_note(f"The report is in {file}")
