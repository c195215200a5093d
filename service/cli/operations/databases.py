"""`nightsweep db`: tables, rules that must hold, backups. It opens the database itself, without a server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from search_spaces.wording import counted
from service.cli.errors import REFUSED, Commands
from service.cli.in_process import build_settings, service_errors_explained
from service.cli.options import Home, Json
from service.cli.views.output import say, say_error, say_json

db = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Upgrade, check, back up or restore the service's database, on a machine that can reach it.",
)

BackupFile = Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The backup file.")]


@db.command()
def upgrade(home: Home = None) -> None:
    """Create the tables of the service and of Optuna, or upgrade them to this version's schema."""
    settings = build_settings(home=home)
    with service_errors_explained():
        from service.maintenance import schema

        schema.upgrade(settings)
    say("The database schema is up to date.")


@db.command()
def check(
    home: Home = None,
    as_json: Json = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First make the rows of trials again from attempts, events and Optuna's storage.",
        ),
    ] = False,
) -> None:
    """Check the database schema, and look for rows that contradict each other; exit 1 if there are any.

    The service may be running.
    """
    settings = build_settings(home=home)
    with service_errors_explained():
        from service.maintenance import integrity, schema

        schema.check_schemas(settings)
        repaired = schema.rebuild_trials(settings) if repair else None
        violations = integrity.find_violations(settings)
    if repaired is not None and not as_json:
        say(f"{counted(repaired, 'row')} of trials written.")
    if as_json:
        say_json([asdict(violation) for violation in violations])
    else:
        for violation in violations:
            say_error(str(violation))
        say(
            f"The database schema is up to date; {len(integrity.SENTENCES)} rules were checked, "
            f"{counted(len(violations), 'violation')} found."
        )
    if violations:
        raise typer.Exit(REFUSED)


@db.command()
def backup(file: BackupFile, home: Home = None) -> None:
    """Back up both databases to a new file, as they are at one moment. The service may be running.

    Adapters and checkpoints are not included.
    """
    settings = build_settings(home=home)
    with service_errors_explained():
        from service.maintenance import backup as backups

        manifest = backups.save(settings, file)
    say(f"{file}: {_contents(manifest.members['service/studies.jsonl'].rows, manifest.rows)}.")


@db.command()
def restore(file: BackupFile, home: Home = None) -> None:
    """Restore a backup into an empty database. SQLite and PostgreSQL read each other's backups.

    Studies that had not ended continue as soon as a coordinator runs.
    """
    settings = build_settings(home=home)
    with service_errors_explained():
        from service.maintenance import backup as backups

        manifest = backups.restore(settings, file)
    say(
        f"Restored {_contents(manifest.members['service/studies.jsonl'].rows, manifest.rows)}, "
        f"as of {manifest.made_at}."
    )


def _contents(studies: int, rows: int) -> str:
    return f"{counted(studies, 'study', 'studies')}, {counted(rows, 'row')}"
