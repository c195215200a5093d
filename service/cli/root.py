"""All commands. `nightsweep --help` imports neither torch nor Ray nor Optuna."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from service.cli.commands import (
    champions,
    control,
    events,
    plan,
    presets,
    range_tests,
    reports,
    results,
    schedules,
    studies,
    trials,
    workers,
)
from service.cli.errors import Commands
from service.cli.operations import artifacts, audit, databases, demo, keys, servers
from service.cli.views.output import say, say_note

app = typer.Typer(
    name="nightsweep",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Hyperparameter search for quantized LoRA fine-tunes.",
    epilog="Exit codes: 0 success; 1 the service refused, or the study did not complete; "
    "2 wrong usage or an unreadable file; 3 no server answered; 4 the time of `wait` is over; "
    "130 interrupted.",
)

_SERVICE = "The service"
_STUDIES = "Studies"
_RESULTS = "Results"

app.command(rich_help_panel=_SERVICE)(demo.demo)
app.command(rich_help_panel=_SERVICE)(servers.serve)
app.command(rich_help_panel=_SERVICE)(servers.api)
app.command(rich_help_panel=_SERVICE)(servers.coordinator)
app.add_typer(databases.db, name="db", rich_help_panel=_SERVICE)
app.add_typer(keys.keys, name="keys", rich_help_panel=_SERVICE)
app.add_typer(audit.audit, name="audit", rich_help_panel=_SERVICE)
app.command(rich_help_panel=_SERVICE)(audit.whoami)
app.add_typer(artifacts.artifacts, name="artifacts", rich_help_panel=_SERVICE)
app.add_typer(workers.workers, name="workers", rich_help_panel=_SERVICE)
app.command(rich_help_panel=_STUDIES)(plan.plan)
app.command(rich_help_panel=_STUDIES)(studies.submit)
app.command(rich_help_panel=_STUDIES)(studies.studies)
app.command(rich_help_panel=_STUDIES)(studies.show)
app.command(rich_help_panel=_STUDIES)(studies.watch)
app.command(rich_help_panel=_STUDIES)(studies.pause)
app.command(rich_help_panel=_STUDIES)(studies.resume)
app.command(rich_help_panel=_STUDIES)(studies.cancel)
app.command(rich_help_panel=_STUDIES)(studies.clone)
app.command(rich_help_panel=_STUDIES)(events.wait)
app.command(rich_help_panel=_STUDIES)(events.events)
app.command(rich_help_panel=_STUDIES)(audit.share)
app.command(rich_help_panel=_STUDIES, cls=control.TagCommand)(control.tag)
app.command(rich_help_panel=_STUDIES)(control.note)
app.command(rich_help_panel=_STUDIES)(control.stop)
app.command(rich_help_panel=_STUDIES)(control.enqueue)
app.command(rich_help_panel=_STUDIES)(control.extend)
app.command(rich_help_panel=_STUDIES)(control.archive)
app.command(rich_help_panel=_STUDIES)(control.unarchive)
app.command(rich_help_panel=_STUDIES)(control.delete)
app.command(rich_help_panel=_STUDIES)(control.restore)
app.command(rich_help_panel=_STUDIES)(range_tests.range_test)
app.add_typer(schedules.schedules, name="schedules", rich_help_panel=_STUDIES)
app.command(rich_help_panel=_STUDIES)(presets.search_spaces)
app.command(rich_help_panel=_RESULTS)(trials.trials)
app.command(rich_help_panel=_RESULTS)(trials.log)
app.command(rich_help_panel=_RESULTS)(reports.best)
app.command(rich_help_panel=_RESULTS)(reports.report)
app.command(rich_help_panel=_RESULTS)(reports.importance)
app.command(rich_help_panel=_RESULTS)(results.export)
app.command(rich_help_panel=_RESULTS)(results.adapter)
app.command(rich_help_panel=_RESULTS)(champions.champion)


def _say_version(wanted: bool) -> None:
    if wanted:
        _print_version()
        raise typer.Exit


@app.command("version", hidden=True)
def _print_version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        say(f"nightsweep {version('nightsweep')}")
    except PackageNotFoundError:
        say("nightsweep, run from a source tree that is not installed")


@app.callback()
def _before_any_command(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", is_eager=True, callback=_say_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    _warn_of_unknown_variables()


def _warn_of_unknown_variables() -> None:
    """A misspelt setting has no effect, which nobody would notice otherwise."""
    clients = {"NIGHTSWEEP_SERVER", "NIGHTSWEEP_API_KEY"}
    if not any(name.upper().startswith("NIGHTSWEEP_") and name not in clients for name in os.environ):
        return  # a client need not load what a service needs
    from service.settings import unknown_variables

    for name, nearest in unknown_variables(os.environ).items():
        meant = "" if nearest is None else f" Did you mean {nearest}?"
        say_note(f"Warning: unknown setting {name}; it has no effect.{meant}")
