"""Commands about what happens: events, wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from search_spaces.values.numbers import parse_duration
from service.cli.errors import INTERRUPTED, REFUSED, TIME_IS_OVER, CommandError
from service.cli.options import Json, Server, StudyName, connect
from service.cli.views.output import say, say_json, say_note, table
from service.client import AWAY, DEFAULT_SERVER, Client, RefusedError, UnreachableError
from service.events.kinds import STUDY_ENDS
from service.events.schemas import EventView
from service.states import StudyState
from service.studies.schemas import StudyView
from service.wording.standing import counts_line
from service.wording.values import moment, one_line

_PAUSE_SECONDS = 1.0
_WAIT_SECONDS = 60.0
"""For one request; the server allows 120."""


def events(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="A study's name or id; everybody's events without it."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Go on with what happens, until the study ends; without a study, for ever and from now on.",
        ),
    ] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only events of this kind; may be given several times.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only events of this owner's studies.", show_default=False)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Only events of this schedule and its sweeps.", show_default=False)
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="Only events with an id above this one.", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List what happened, oldest first, or follow it. With --follow, --json prints a document per line.

    If the server does not answer, --follow asks again: no event is left out and none comes twice.
    """
    if study is not None and (owner or schedule):
        raise CommandError("--owner and --schedule choose among everybody's events; leave out the study")
    filters = {"kind": kind or None, "owner": owner, "schedule": schedule}
    with connect(server) as client:
        if follow and not (study is not None and client.study(study).ended):
            raise typer.Exit(_follow(client, study, after, filters, as_json=as_json))
        found = list(client.events(study, after=after or 0, **filters))
    if follow:
        for event in found:
            _say_line(event, as_json=as_json)
    elif as_json:
        say_json([event.document() for event in found])
    else:
        _say_table(found, of_one_study=study is not None)


def wait(
    study: StudyName,
    timeout: Annotated[
        str | None,
        typer.Option(help="Give up after this time, such as 90s, 2h or 1h30m.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Wait until a study has ended, also while it is paused. For scripts.

    Exit codes: 0 it completed; 1 it failed or was cancelled, or there is no such study; 3 no server answered
    when it was first asked; 4 the time is over, and the study goes on.
    """
    try:
        seconds = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise CommandError(f"--timeout: {error}") from error
    with connect(server) as client:
        try:
            found = wait_for_end(client, client.study(study).id, seconds)
        except KeyboardInterrupt:
            say_note(f"Stopped waiting; the study goes on. Wait again with: nightsweep wait {study}")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        say_json(found.document())
    else:
        reason = f": {one_line(found.reason)}" if found.reason else ""
        still = "" if found.ended else " still"
        say(f"Study {found.name} is{still} {found.state}{reason} ({counts_line(found)})")
    if not found.ended:
        raise typer.Exit(TIME_IS_OVER)
    raise typer.Exit(0 if found.state == StudyState.COMPLETED else REFUSED)


def wait_for_end(
    client: Client,
    study: str,
    seconds: float | None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StudyView:
    """The study when it has ended, or as it is after that time. A server that is away is asked again.

    Raises:
        RefusedError: the service said no, for example because the study is gone.
        UnreachableError: the time is over, and the server does not answer.
    """
    give_up_at = None if seconds is None else clock() + seconds
    asks_long = True
    while True:
        left = _WAIT_SECONDS if give_up_at is None else min(_WAIT_SECONDS, max(0.0, give_up_at - clock()))
        began, over = clock(), give_up_at is not None and left == 0.0
        try:
            found = client.study(study, wait=left if asks_long and left else None)
        except (RefusedError, UnreachableError) as error:
            if isinstance(error, RefusedError) and error.status == 422 and asks_long:
                asks_long = False  # an older server, which has no such parameter
                continue
            if over or (isinstance(error, RefusedError) and error.status not in AWAY):
                raise
        else:
            if found.ended or over:
                return found
        if clock() - began < _PAUSE_SECONDS:
            sleep(_PAUSE_SECONDS if left > _PAUSE_SECONDS else left)


def _follow(
    client: Client,
    study: str | None,
    after: int | None,
    filters: dict[str, Any],
    *,
    as_json: bool,
) -> int:
    """Prints events as they come. Returns the command's exit code."""
    wanted = frozenset(filters["kind"] or ())
    if study is not None:
        after = after or 0
        if wanted:  # its end is not printed, but noticed
            filters = {**filters, "kind": sorted(wanted | STUDY_ENDS)}
    try:
        for event in _arriving(client, study, after, filters):
            if not wanted or event.kind in wanted:
                _say_line(event, as_json=as_json)
            if study is not None and event.kind in STUDY_ENDS:
                return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _arriving(
    client: Client, study: str | None, after: int | None, filters: dict[str, Any]
) -> Iterator[EventView]:
    """Events for ever; when the server is away, the stream is taken up again at the last id."""
    away = False
    while True:
        try:
            for arrived in client.arrivals(study, after=after, **filters):
                if away:
                    away = False
                    say_note("the server answers again")
                for arrival in arrived:
                    after = arrival.id
                    if arrival.event is not None:
                        yield arrival.event
        except (RefusedError, UnreachableError) as error:
            if after is None or (isinstance(error, RefusedError) and error.status not in AWAY):
                raise
            if not away:
                away = True
                say_note(f"trying again: {error}")
        time.sleep(_PAUSE_SECONDS)


def _say_line(event: EventView, *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(event.document()))
        return
    trial = "" if event.trial_number is None else f" trial {event.trial_number}"
    whose = event.study or event.schedule or "-"
    say(one_line(f"{moment(event.at)} {whose}{trial} {event.kind}: {event.message}"))


def _say_table(found: list[EventView], *, of_one_study: bool) -> None:
    whose = () if of_one_study else ("study",)
    rows = []
    for event in found:
        cells: list[object] = [event.id, moment(event.at)]
        if not of_one_study:
            cells.append(event.study or event.schedule or "-")
        cells += ["-" if event.trial_number is None else event.trial_number, event.kind, event.message]
        rows.append(cells)
    table(("id", "at", *whose, "trial", "kind", "message"), rows, empty="No events.")
