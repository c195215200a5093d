"""Commands about the audit log, and about who may change what, over REST."""

from __future__ import annotations

import itertools
import json
from typing import Annotated

import typer

from service.cli.errors import CommandError, Commands
from service.cli.options import Json, Server, connect
from service.cli.views.output import say, say_json, table
from service.client import DEFAULT_SERVER
from service.wording.values import moment

audit = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Show or export who changed what, from where. It needs an admin's key.",
)

OwnerOption = Annotated[str | None, typer.Option(help="Only what this owner did.", show_default=False)]
ObjectOption = Annotated[
    str | None,
    typer.Option(
        "--object",
        help="Only what was done to this: the id or name of a study, schedule, key or GPU.",
        show_default=False,
    ),
]
Since = Annotated[
    str | None, typer.Option(help="Only at this time or later: 2026-07-01T00:00:00Z.", show_default=False)
]
Until = Annotated[str | None, typer.Option(help="Only before this time.", show_default=False)]


@audit.command("list")
def list_entries(
    owner: OwnerOption = None,
    about: ObjectOption = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="How many entries, newest first.")] = 50,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List who changed what, newest first; also logins, refused ones included."""
    with connect(server) as client:
        entries = client.audit(owner=owner, object=about, since=since, until=until)
        found = list(itertools.islice(entries, limit))
    if as_json:
        say_json([entry.document() for entry in found])
        return
    table(
        ("at", "owner", "via", "what", "outcome", "from"),
        [
            (moment(e.at), e.owner or "-", e.via, e.summary, e.outcome, e.address or e.subject or "-")
            for e in found
        ],
        empty="No entries match." if owner or about or since or until else "No entries.",
    )


@audit.command()
def export(
    owner: OwnerOption = None,
    about: ObjectOption = None,
    since: Since = None,
    until: Until = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print all entries that match, a JSON object in each line, newest first."""
    with connect(server) as client:
        for entry in client.audit(owner=owner, object=about, since=since, until=until):
            say(json.dumps(entry.document()))


def share(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A study's name or id, or a schedule's.", show_default=False)
    ],
    owners: Annotated[
        list[str],
        typer.Argument(
            metavar="OWNER...", help="Owners who may change it; or `team`, or `none`.", show_default=False
        ),
    ],
    schedule: Annotated[bool, typer.Option("--schedule", help="It is a schedule.")] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Say who may change a study or schedule of yours beside you. Everybody may read it."""
    words = {"team", "none"} & set(owners)
    if words and len(owners) > 1:
        raise CommandError(f"{sorted(words)[0]!r} stands alone: give either it, or the names of owners")
    with connect(server) as client:
        found = client.share(name, owners[0] if words else owners, schedule=schedule)
    if as_json:
        say_json(found.document())
        return
    with_whom = {"team": "every owner", "none": "nobody else"}.get(
        found.shared if isinstance(found.shared, str) else "", ", ".join(found.shared)
    )
    say(f"{name} may be changed by {found.owner} and by {with_whom}; admins may change everything.")


def whoami(server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show who the server takes you for, and what you may do."""
    with connect(server) as client:
        me = client.me()
    if as_json:
        say_json(me.document())
        return
    key = "" if me.key is None else f", with the key {me.key.id}"
    until = "" if me.key is None or me.key.expires_at is None else f" until {moment(me.key.expires_at)}"
    say(f"You are {me.owner} here, with the role {me.role}{key}{until}.")
