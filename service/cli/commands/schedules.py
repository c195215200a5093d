"""Commands about schedules: list, add, show, edit, enable, disable, run, runs, history, remove."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.cli.errors import CommandError, Commands
from service.cli.options import Json, Server, StudyFile, connect, given
from service.cli.study_file import read_study_file
from service.cli.views.output import moment, say, say_json, table
from service.cli.views.schedules import show_runs, show_schedule, what_changed
from service.client import DEFAULT_SERVER
from service.schedules.schemas import ScheduleEventView, ScheduleView

schedules = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Submit a study at set times, for example every night."
)

ScheduleName = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="A schedule's name or id.", show_default=False)
]

KnownName = Annotated[
    str,
    typer.Argument(
        metavar="SCHEDULE", help="A schedule's name or id; it may have been removed.", show_default=False
    ),
]
Overlap = Annotated[
    Literal["skip", "allow"] | None,
    typer.Option(
        help="If an earlier sweep is still queued or running: skip this firing, or allow a second sweep.",
        show_default=False,
    ),
]
Repeat = Annotated[
    bool | None,
    typer.Option(
        "--repeat-configurations/--no-repeat-configurations",
        help="Evaluate again what earlier sweeps evaluated on the same data, or leave it out.",
        show_default=False,
    ),
]
Latest = Annotated[int, typer.Option(min=1, help="Show at most this many.")]


@schedules.command("list")
def list_schedules(
    prefix: Annotated[
        str | None, typer.Option(help="Only schedules whose names begin with this.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only schedules of this owner of an API key.", show_default=False)
    ] = None,
    enabled: Annotated[
        bool | None,
        typer.Option(
            "--enabled/--disabled", help="Only enabled schedules, or only disabled ones.", show_default=False
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List schedules, by name."""
    with connect(server) as client:
        found = client.schedules(prefix=prefix, owner=owner, enabled=enabled)
    if as_json:
        say_json([schedule.document() for schedule in found])
        return
    table(
        ("name", "cron", "timezone", "enabled", "next firing", "last firing", "studies"),
        [
            (
                schedule.name,
                schedule.cron,
                schedule.timezone,
                "yes" if schedule.enabled else "no",
                moment(schedule.next_fire_at),
                moment(schedule.last_fired_for),
                schedule.studies,
            )
            for schedule in found
        ],
        empty="No schedules match." if prefix or owner or enabled is not None else "No schedules.",
    )


@schedules.command()
def add(
    file: StudyFile,
    cron: Annotated[
        str,
        typer.Option(help="When it fires, as a cron expression such as '0 22 * * *'.", show_default=False),
    ],
    timezone: Annotated[
        str, typer.Option(help="The time zone of --cron, for example Europe/Berlin.")
    ] = "UTC",
    name: Annotated[
        str | None, typer.Option(help="The schedule's name. Default: the study's name.", show_default=False)
    ] = None,
    disabled: Annotated[
        bool, typer.Option("--disabled", help="Add it disabled: it does not fire until it is enabled.")
    ] = False,
    overlap: Overlap = None,
    repeat: Repeat = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Add a schedule: each firing submits the study once.

    With --repeat-configurations, sweeps evaluate again what earlier sweeps evaluated on the same data.
    """
    definition = read_study_file(file)
    with connect(server) as client:
        schedule = client.add_schedule(
            definition,
            cron=cron,
            timezone=timezone,
            name=name,
            enabled=not disabled,
            **given(overlap=overlap, repeat_configurations=repeat),
        )
    _say(schedule, as_json)


@schedules.command()
def show(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show one schedule."""
    with connect(server) as client:
        found = client.schedule(schedule)
    _say(found, as_json)


@schedules.command()
def edit(
    schedule: ScheduleName,
    file: Annotated[
        Path | None,
        typer.Option(metavar="STUDY.yaml", help="The definition from now on.", show_default=False),
    ] = None,
    cron: Annotated[str | None, typer.Option(help="A cron expression.", show_default=False)] = None,
    timezone: Annotated[str | None, typer.Option(help="The time zone of --cron.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="The schedule's new name.", show_default=False)] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="search.seed; each sweep derives its own seed from it.", show_default=False),
    ] = None,
    overlap: Overlap = None,
    repeat: Repeat = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Change a schedule. The sweeps that it has made stay as they are; `history` shows the change.

    With --repeat-configurations, sweeps evaluate again what earlier sweeps evaluated on the same data.
    """
    changes: dict[str, Any] = given(
        cron=cron, timezone=timezone, name=name, seed=seed, overlap=overlap, repeat_configurations=repeat
    )
    if file is not None:
        changes["definition"] = read_study_file(file)
    if not changes:
        raise CommandError(
            "nothing to change: give --file, --cron, --timezone, --name, --seed, --overlap or "
            "--repeat-configurations"
        )
    with connect(server) as client:
        found = client.change_schedule(schedule, **changes)
    _say(found, as_json)


@schedules.command()
def run(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Start a sweep now. The next firing still takes place at its time."""
    with connect(server) as client:
        study = client.run_schedule(schedule)
    if as_json:
        say_json(study.document())
        return
    say(f"Study {study.name} is {study.state}.", f"Follow it with: nightsweep watch {study.name}")


@schedules.command()
def runs(
    schedule: KnownName, limit: Latest = 20, server: Server = DEFAULT_SERVER, as_json: Json = False
) -> None:
    """List a schedule's sweeps with their best values, and the firings that made none, newest first."""
    with connect(server) as client:
        sweeps = list(islice(client.sweeps(schedule), limit))
        if as_json:
            say_json([study.document() for study in sweeps])
            return
        events = client.schedule_history(schedule)
        # Far enough back for as many as can be shown.
        oldest = sweeps[-1].created_at if len(sweeps) == limit else None
        missed: list[ScheduleEventView] = []
        for event in events:
            if (oldest is not None and event.at < oldest) or len(missed) == limit:
                break
            if event.kind in ("skipped", "failed"):
                missed.append(event)
    show_runs(sweeps, missed, limit)


@schedules.command()
def history(
    schedule: KnownName, limit: Latest = 20, server: Server = DEFAULT_SERVER, as_json: Json = False
) -> None:
    """Show who changed what in a schedule, and which firings made no sweep, newest first."""
    with connect(server) as client:
        events = list(islice(client.schedule_history(schedule), limit))
    if as_json:
        say_json([event.document() for event in events])
        return
    table(
        ("at", "by", "what"),
        [(moment(event.at), event.asked_by or "-", what_changed(event)) for event in events],
        empty="No history: an earlier version of Nightsweep made this schedule.",
    )


@schedules.command()
def enable(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Enable a schedule: it fires again, from its next time on."""
    with connect(server) as client:
        found = client.change_schedule(schedule, enabled=True)
    _say(found, as_json)


@schedules.command()
def disable(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Disable a schedule: it does not fire. Its studies are not touched."""
    with connect(server) as client:
        found = client.change_schedule(schedule, enabled=False)
    _say(found, as_json)


@schedules.command()
def remove(schedule: ScheduleName, server: Server = DEFAULT_SERVER) -> None:
    """Remove a schedule. Its studies and its history are not touched."""
    with connect(server) as client:
        client.remove_schedule(schedule)
    say(f"Schedule {schedule} removed.")


def _say(schedule: ScheduleView, as_json: bool) -> None:
    if as_json:
        say_json(schedule.document())
    else:
        show_schedule(schedule)
