"""Commands about schedules: list, add, show, enable, disable, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.errors import Commands
from service.cli.options import DEFAULT_SERVER, Json, Server, StudyFile, connect
from service.cli.output import moment, one_line, say, say_json, table
from service.cli.study_file import read_study_file
from service.client import Schedule

schedules = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Submit a study at set times, for example every night."
)

ScheduleName = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="A schedule's name or id.", show_default=False)
]


@schedules.command("list")
def list_schedules(server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """List all schedules."""
    with connect(server) as client:
        found = client.schedules()
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
        empty="No schedules.",
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
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Add a schedule: each firing submits the study once."""
    definition = read_study_file(file)
    with connect(server) as client:
        schedule = client.add_schedule(
            definition, cron=cron, timezone=timezone, name=name, enabled=not disabled
        )
    _say(schedule, as_json)


@schedules.command()
def show(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show one schedule."""
    with connect(server) as client:
        found = client.schedule(schedule)
    _say(found, as_json)


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
    """Remove a schedule. Its studies are not touched."""
    with connect(server) as client:
        client.remove_schedule(schedule)
    say(f"Schedule {schedule} removed.")


def _say(schedule: Schedule, as_json: bool) -> None:
    if as_json:
        say_json(schedule.document())
        return
    say(
        f"Schedule {schedule.name} ({'enabled' if schedule.enabled else 'disabled'})",
        f"  Id            {schedule.id}",
        f"  Cron          {schedule.cron} ({schedule.timezone})",
        f"  Next firing   {moment(schedule.next_fire_at)}",
        f"  Last firing   {moment(schedule.last_fired_for)}",
        f"  Studies       {schedule.studies}",
        f"  Last sweep    {_sweep(schedule)}",
        f"  Owner         {schedule.owner or '-'}",
    )


def _sweep(schedule: Schedule) -> str:
    sweep = schedule.last_sweep
    if sweep is None:
        return "-"
    return f"{sweep.name} {sweep.state}" + (f": {one_line(sweep.reason)}" if sweep.reason else "")
