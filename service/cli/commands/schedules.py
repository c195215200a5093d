"""Commands about schedules: list, add, show, edit, enable, disable, next, run, runs, history, remove."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.cli.errors import CommandError, Commands
from service.cli.options import Json, Server, StudyFile, connect, given
from service.cli.study_file import read_study_file
from service.cli.views.output import say, say_json, say_note, table
from service.cli.views.schedules import MADE_NO_SWEEP, show_firings, show_runs, show_schedule, what_changed
from service.client import DEFAULT_SERVER
from service.schedules.schemas import ScheduleEventView, ScheduleView
from service.wording.values import moment

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
    Literal["skip", "allow", "queue", "cancel_running"] | None,
    typer.Option(
        help="If an earlier sweep is still queued or running: skip this firing, allow a second sweep, queue"
        " the firing until the earlier sweep has ended, or cancel the earlier one.",
        show_default=False,
    ),
]
CatchUp = Annotated[
    Literal["latest", "none"] | None,
    typer.Option(help="Of firings that were missed: make the latest late, or none.", show_default=False),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="DATE", help="Nothing fires before: 2026-12-01, or 2026-12-01T18:00.", show_default=False
    ),
]
End = Annotated[
    str | None,
    typer.Option(metavar="DATE", help="Nothing fires after; the whole day of a date.", show_default=False),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="HH:MM", help="The time of day at which a sweep is ended or paused.", show_default=False
    ),
]
UntilAction = Annotated[
    Literal["end", "pause", "continue"] | None,
    typer.Option(
        help="At --until: end the sweep (default), pause it until a person resumes it, or pause it until the"
        " next firing continues it.",
        show_default=False,
    ),
]
SweepName = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="What its sweeps are called, with {date}, {week} and {run}: nightly-{date}.",
        show_default=False,
    ),
]
Cold = Annotated[
    bool, typer.Option("--cold", help="Do not start each sweep from the results of earlier sweeps.")
]
Repeat = Annotated[
    bool | None,
    typer.Option(
        "--repeat-configurations/--no-repeat-configurations",
        help="Evaluate again what earlier sweeps evaluated on the same data, or leave it out.",
        show_default=False,
    ),
]
Champion = Annotated[
    bool | None,
    typer.Option(
        "--champion/--no-champion",
        help="Compare each sweep's winner with the best adapter so far, or do not.",
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
    start: Start = None,
    end: End = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    until: Until = None,
    until_action: UntilAction = None,
    sweep_name: SweepName = None,
    repeat: Repeat = None,
    cold: Cold = False,
    champion: Champion = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Add a schedule: each firing submits the study once.

    A study without a warm_start gets one from the schedule itself, unless you give --cold: when the data has
    changed, the best recipes of earlier sweeps are evaluated first. With --repeat-configurations, sweeps
    evaluate again what earlier sweeps evaluated on the same data.
    """
    written = read_study_file(file)
    definition = written if cold else _warm(written, name or written.get("name"))
    with connect(server) as client:
        schedule = client.add_schedule(
            definition,
            cron=cron,
            timezone=timezone,
            name=name,
            enabled=not disabled,
            **given(
                start=start,
                end=end,
                overlap=overlap,
                catch_up=catch_up,
                until=until,
                until_action=until_action,
                sweep_name=sweep_name,
                repeat_configurations=repeat,
                champion=champion,
            ),
        )
    if definition is not written:
        warm = f"warm_start: {{from: {schedule.name}}}"
        say_note(f"Each sweep starts from the best recipes of earlier sweeps ({warm}); with --cold, not.")
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
    start: Start = None,
    end: End = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    until: Until = None,
    until_action: UntilAction = None,
    sweep_name: SweepName = None,
    repeat: Repeat = None,
    cold: Cold = False,
    champion: Champion = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Change a schedule. The sweeps that it has made stay as they are; `history` shows the change.

    An empty --start, --end, --until or --sweep-name takes it away. With --file, a schedule that starts each
    sweep from the results of earlier ones goes on doing so, unless you give --cold. With
    --repeat-configurations, sweeps evaluate again what earlier sweeps evaluated on the same data.
    """
    changes: dict[str, Any] = given(
        cron=cron,
        timezone=timezone,
        name=name,
        seed=seed,
        overlap=overlap,
        catch_up=catch_up,
        until_action=until_action,
        repeat_configurations=repeat,
        champion=champion,
    )
    cleared = given(start=start, end=end, until=until, sweep_name=sweep_name)
    changes |= {key: value or None for key, value in cleared.items()}
    if file is not None:
        changes["definition"] = read_study_file(file)
    if not changes:
        raise CommandError(
            "nothing to change: give --file, --cron, --timezone, --name, --seed, --start, --end, --overlap,"
            " --catch-up, --until, --until-action, --sweep-name, --repeat-configurations or --champion"
        )
    with connect(server) as client:
        if file is not None and not cold:
            before = client.schedule(schedule)
            warm = before.definition.get("warm_start")
            if isinstance(warm, dict) and warm.get("from") == before.name:
                changes["definition"] = _warm(changes["definition"], before.name)
        found = client.change_schedule(schedule, **changes)
    _say(found, as_json)


@schedules.command("next")
def list_next(
    schedule: Annotated[
        str | None, typer.Argument(metavar="[SCHEDULE]", help="Its name or id.", show_default=False)
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="Of a schedule that you have not added yet.", show_default=False)
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="With --cron: its time zone. Default: UTC.", show_default=False)
    ] = None,
    start: Start = None,
    end: End = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many firings.")] = 10,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show when a schedule fires next, or would: in local time, in UTC, and around changes of the clock."""
    times = given(cron=cron, timezone=timezone, start=start, end=end)
    if (schedule is None) == (cron is None) or (schedule is not None and times):
        raise CommandError("give the name of a schedule, or else --cron, with --timezone, --start or --end")
    with connect(server) as client:
        if schedule is not None:
            found = client.next_firings(schedule, count=count)
        else:
            found = client.preview_firings(count=count, **times)
    if as_json:
        say_json(found.document())
        return
    show_firings(found, count)


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
    """List a schedule's sweeps with their best values and GPU-hours, and the firings that made none, newest
    first."""
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
            if event.kind in MADE_NO_SWEEP:
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


def _warm(definition: dict[str, Any], name: object) -> dict[str, Any]:
    """The definition, with a warm start from its own schedule where it has none."""
    if not isinstance(name, str) or definition.get("warm_start") is not None:
        return definition
    return {**definition, "warm_start": {"from": name}}


def _say(schedule: ScheduleView, as_json: bool) -> None:
    if as_json:
        say_json(schedule.document())
    else:
        show_schedule(schedule)
