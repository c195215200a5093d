"""Commands about studies: submit, list, show, watch, cancel, clone."""

from __future__ import annotations

import itertools
import sys
from typing import Annotated, Any

import typer

from service.cli.errors import INTERRUPTED, REFUSED, CommandError
from service.cli.follow import follow
from service.cli.options import Json, Server, StudyFile, StudyName, connect
from service.cli.study_file import read_study_file
from service.cli.views.output import console, say, say_json, say_note, table
from service.cli.views.studies import show_study, summary
from service.client import DEFAULT_SERVER, Client
from service.states import StudyState
from service.studies.schemas import StudyView
from service.wording.standing import counts_line
from service.wording.values import moment, number, one_line


def submit(
    file: StudyFile,
    name: Annotated[
        str | None, typer.Option(help="The study's name, instead of the one in the file.", show_default=False)
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the study until it ends; exit 1 unless it completes.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            help="For scripts: the same file submitted again with the same key makes no second study.",
            show_default=False,
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Submit a study. Relative paths in the file are looked up in the file's folder first.

    If the connection breaks, the request is sent again; the study is still submitted only once.
    """
    if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise CommandError("--idempotency-key: must be printable ASCII characters")
    definition = read_study_file(file)
    if name is not None:
        definition["name"] = name
    with connect(server) as client:
        study = client.submit(definition, idempotency_key=idempotency_key)
        if watch:
            if not as_json:
                _say_submitted(client, study)
            raise typer.Exit(watch_to_the_end(client, study, as_json=as_json))
        if as_json:
            say_json(study.document())
        else:
            _say_submitted(client, study)
            say(f"Watch it with: nightsweep watch {study.name}")


def studies(
    state: Annotated[
        list[StudyState] | None, typer.Option(help="Only studies in this state; may be given several times.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Only studies whose names begin with this.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only studies of this owner of an API key.", show_default=False)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Only studies that this schedule made.", show_default=False)
    ] = None,
    created_after: Annotated[
        str | None,
        typer.Option(help="Only studies submitted at this time or later (RFC 3339).", show_default=False),
    ] = None,
    created_before: Annotated[
        str | None, typer.Option(help="Only studies submitted before this time.", show_default=False)
    ] = None,
    ended_after: Annotated[
        str | None,
        typer.Option(help="Only studies that ended at this time or later.", show_default=False),
    ] = None,
    ended_before: Annotated[
        str | None, typer.Option(help="Only studies that ended before this time.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Only studies with this tag; given several times: with all of them."),
    ] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="The studies that are archived, in place of the others.")
    ] = False,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="The studies that are to be removed, in place of the others.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many studies to list, newest first.")] = 50,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List studies, newest first."""
    times = {
        "created_after": created_after,
        "created_before": created_before,
        "ended_after": ended_after,
        "ended_before": ended_before,
    }
    with connect(server) as client:
        matching = client.studies(
            state=state,
            prefix=prefix,
            owner=owner,
            schedule=schedule,
            tag=tag,
            archived=archived or None,
            deleted=deleted or None,
            **times,
        )
        found = list(itertools.islice(matching, limit))
    if as_json:
        say_json([study.document() for study in found])
        return
    table(
        ("name", "state", "trials", "best", "created", "reason"),
        [
            (
                study.name,
                study.state,
                counts_line(study),
                f"{study.metric} {number(study.best.value)}" if study.best else "-",
                moment(study.created_at),
                study.reason,
            )
            for study in found
        ],
        empty="No studies match."
        if state or prefix or owner or schedule or tag or archived or deleted or any(times.values())
        else "No studies.",
    )


def show(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show one study: its state, the numbers of its trials, and its best trial."""
    with connect(server) as client:
        found = client.study(study)
        dashboard = client.dashboard_url(found)
    if as_json:
        say_json(found.document())
        return
    show_study(found, dashboard)


def watch(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Follow a study until it ends, also while it is paused; exit 1 unless it completes.

    With --json, progress goes to stderr and the ended study to stdout.
    """
    with connect(server) as client:
        raise typer.Exit(watch_to_the_end(client, client.study(study), as_json=as_json))


def cancel(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Cancel a study. Its running trials stop at their next step."""
    with connect(server) as client:
        found = client.cancel(study)
    if as_json:
        say_json(found.document())
    elif found.ended:
        say(f"Study {found.name} is {found.state}.")
    else:
        say(f"Study {found.name} is being cancelled. Watch it with: nightsweep watch {found.name}")


def pause(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Pause a study. Its running trials write checkpoints, and its workers are released."""
    with connect(server) as client:
        found = client.pause(study)
    if as_json:
        say_json(found.document())
        return
    if found.pause_requested:
        say(f"Study {found.name} is being paused: its trials are writing checkpoints.")
    else:
        say(f"Study {found.name} is {found.state}.")
    say(f"Resume it with: nightsweep resume {found.name}")


def resume(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Resume a paused study. Its trials continue where they stopped."""
    with connect(server) as client:
        found = client.resume(study)
    if as_json:
        say_json(found.document())
    else:
        reason = f" ({one_line(found.reason)})" if found.reason else ""
        say(f"Study {found.name} is {found.state}{reason}.", f"Watch it with: nightsweep watch {found.name}")


def clone(
    study: StudyName,
    name: Annotated[str, typer.Option(help="The new study's name.", show_default=False)],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Submit a study's definition again under another name."""
    with connect(server) as client:
        submitted = client.submit(cloned_definition(client.study(study), name))
        if as_json:
            say_json(submitted.document())
        else:
            _say_submitted(client, submitted)


def cloned_definition(study: StudyView, name: str) -> dict[str, Any]:
    """A study's accepted definition under a new name.

    An accepted definition holds the space that its preset stood for. The clone keeps that space and drops
    the label, so that it searches the same even where the catalog has changed since.
    """
    definition = dict(study.definition) | {"name": name}
    definition["search"] = {key: value for key, value in definition["search"].items() if key != "preset"}
    return definition


def watch_to_the_end(client: Client, study: StudyView, *, as_json: bool) -> int:
    """Follows a study and prints its summary. Returns the command's exit code."""
    try:
        ended = follow(client, study.id, console(sys.stderr if as_json else None))
    except KeyboardInterrupt:
        say_note(f"Stopped watching; the study goes on. Watch again with: nightsweep watch {study.name}")
        return INTERRUPTED
    if as_json:
        say_json(ended.study.document())
    else:
        say("", *summary(ended, client.dashboard_url(ended.study)))
    return 0 if ended.study.state == StudyState.COMPLETED else REFUSED


def _say_submitted(client: Client, study: StudyView) -> None:
    say(
        f"Study {study.name} submitted",
        f"  Id          {study.id}",
        f"  Name        {study.name}",
        f"  Report      {client.report_url(study)}",
        f"  Dashboard   {client.dashboard_url(study)}",
    )
