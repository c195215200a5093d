"""Commands about schedules: list, add, show, enable, disable, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.errors import Commands
from service.cli.options import DEFAULT_SERVER, Json, Server, StudyFile, connect
from service.cli.output import moment, one_line, say, say_json, table
from service.cli.study_file import read_study_file
from service.client import Schedule

schedules = typer.Typer(cls=Commands, no_args_is_help=True, help="Studies that run by themselves.")

ScheduleName = Annotated[
    str, typer.Argument(metavar="SCHEDULE", help="A schedule's name or id.", show_default=False)
]


@schedules.command("list")
def list_schedules(
    prefix: Annotated[
        str | None, typer.Option(help="Only schedules whose names begin with this.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only schedules of this API key's owner.", show_default=False)
    ] = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enabled/--disabled", help="Only those that fire, or do not.", show_default=False),
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
    cron: Annotated[str, typer.Option(help="When, for example '0 22 * * *'.", show_default=False)],
    timezone: Annotated[str, typer.Option(help="Whose clock, for example Europe/Berlin.")] = "UTC",
    name: Annotated[
        str | None, typer.Option(help="The schedule's name; the study's without.", show_default=False)
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Add it without letting it fire.")] = False,
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
    """Let a schedule fire again, from its next instant on."""
    with connect(server) as client:
        found = client.change_schedule(schedule, enabled=True)
    _say(found, as_json)


@schedules.command()
def disable(schedule: ScheduleName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Keep a schedule from firing. Its studies are left alone."""
    with connect(server) as client:
        found = client.change_schedule(schedule, enabled=False)
    _say(found, as_json)


@schedules.command()
def remove(schedule: ScheduleName, server: Server = DEFAULT_SERVER) -> None:
    """Remove a schedule. Its studies are left alone."""
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
