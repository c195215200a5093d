"""Commands about API keys: add, list, change, rotate, revoke; on the database itself, or over REST."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from service.cli.errors import Commands
from service.cli.in_process import build_settings, service_errors_explained
from service.cli.options import Home, Json, connect
from service.cli.views.output import say, say_json, say_note, table
from service.db.kinds import Role
from service.wording.values import moment

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path

    from sqlalchemy.orm import Session

    from service.access.keys.schemas import KeyView, NewKeyView

keys = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Create, list, rotate and revoke API keys: on a machine that can reach the database, or with "
    "--server over REST, with an admin's key.",
)

Owner = Annotated[
    str, typer.Argument(metavar="OWNER", help="The name of a person or a team.", show_default=False)
]
KeyRef = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="A key's id, or the name of an owner who has one key.",
        show_default=False,
    ),
]
RoleOption = Annotated[
    Role, typer.Option(help="viewer: read; submitter: submit, and change what is its own; admin: everything.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="Do it over REST on this server, not in the database.",
        show_default=False,
        rich_help_panel="Connection",
    ),
]
T = TypeVar("T")


@keys.command()
def add(
    owner: Owner,
    role: RoleOption = Role.SUBMITTER,
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="How long it works, such as 90d.", show_default="without end")
    ] = None,
    server: ServerOption = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Create an API key and print it, this once. As soon as there is a key, every request needs one."""
    document = {"owner": owner, "role": role, "label": label} | ({"expires_in": expires} if expires else {})
    if server is not None:
        with connect(server) as client:
            made = client.add_key(document)
    else:
        from service.access.keys import operations

        made = _in_database(home, lambda: operations.add(document))
    _say_new(made, as_json)


@keys.command("list")
def list_keys(server: ServerOption = None, home: Home = None, as_json: Json = False) -> None:
    """List API keys, those that have expired or were revoked included."""
    if server is not None:
        with connect(server) as client:
            found = client.keys()
    else:
        from service.access.keys import operations

        found = _in_database(home, lambda: operations.list_keys)
    if as_json:
        say_json([key.document() for key in found])
        return
    table(
        ("id", "owner", "role", "label", "state", "created", "expires", "last used"),
        [_row(key) for key in found],
        empty="No keys.",
    )


@keys.command()
def change(
    key: KeyRef,
    role: Annotated[Role | None, typer.Option(help="What it may do from now on.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="What it is for.", show_default=False)] = None,
    server: ServerOption = None,
    home: Home = None,
) -> None:
    """Change the role or the label of a key, from the next request on."""
    given: dict[str, Any] = {"role": role, "label": label}
    document = {name: value for name, value in given.items() if value is not None}
    if server is not None:
        with connect(server) as client:
            changed = client.change_key(client.key_id(key), document)
    else:
        from service.access.keys import operations

        changed = _in_database(home, lambda: operations.change(key, document))
    say(f"The key {changed.id} of {changed.owner} has the role {changed.role}.")


@keys.command()
def rotate(
    key: KeyRef,
    overlap: Annotated[
        str | None,
        typer.Option(help="How long the old key still works, such as 24h.", show_default="not at all"),
    ] = None,
    server: ServerOption = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Create a key in place of another one, with its owner, role, label and lifetime, and print it."""
    document = {"overlap": overlap} if overlap else {}
    if server is not None:
        with connect(server) as client:
            made = client.rotate_key(client.key_id(key), document)
    else:
        from service.access.keys import operations

        made = _in_database(home, lambda: operations.rotate(key, document))
    _say_new(made, as_json)


@keys.command()
def revoke(key: KeyRef, server: ServerOption = None, home: Home = None) -> None:
    """Revoke a key, from the next request on; sessions begun with it end. Its owner's studies continue."""
    if server is not None:
        with connect(server) as client:
            client.revoke_key(key_id := client.key_id(key))
    else:
        from service.access.keys import operations

        key_id = _in_database(home, lambda: operations.revoke(key))
    say(f"The key {key_id} was revoked.")


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        key.id,
        key.owner,
        key.role,
        key.label or "-",
        key.state,
        moment(key.created_at),
        moment(key.expires_at),
        moment(key.last_used_at),
    )


def _say_new(made: NewKeyView, as_json: bool) -> None:
    if as_json:
        say_json(made.document())
        return
    if made.key is None:
        say_note(
            f"The key {made.id} of {made.owner} was made, but the answer with it was lost. Revoke it with "
            f"`nightsweep keys revoke {made.id}`, and make another."
        )
        raise typer.Exit(1)
    say(made.key)
    until = "" if made.expires_at is None else f", until {moment(made.expires_at)}"
    say_note(
        f"This is the key {made.id} of {made.owner}, with the role {made.role}{until}; it is not stored and "
        "cannot be shown again.",
        "To use it, set NIGHTSWEEP_API_KEY to it.",
    )


def _in_database(home: Path | None, make: Callable[[], Callable[[Session, timedelta], T]]) -> T:
    """Work in a writing transaction of the database that the settings name.

    Args:
        home: the folder that the option names.
        make: makes the work, unless what was asked for is not valid. It is told how long entries of the audit
            log are kept.
    """
    from datetime import timedelta

    settings = build_settings(home=home)
    with service_errors_explained():
        from service.db import database
        from service.maintenance import schema

        work = make()
        opened = database.open_database(settings)
        try:
            schema.check_schema(opened.engine)
            keep = timedelta(days=settings.audit_days)
            return opened.transact(lambda session: work(session, keep))
        finally:
            opened.dispose()
