"""Commands about API keys: add, list, revoke. They work on the database itself, not over REST."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from service.cli.errors import Commands
from service.cli.in_process import build_settings, service_errors_explained
from service.cli.options import Home, Json
from service.cli.views.output import moment, say, say_json, say_note, table

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

keys = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Create, list and revoke API keys, on a machine that can reach the database.",
)

Owner = Annotated[
    str, typer.Argument(metavar="OWNER", help="The name of a person or a team.", show_default=False)
]
T = TypeVar("T")


@keys.command()
def add(owner: Owner, home: Home = None, as_json: Json = False) -> None:
    """Create an API key and print it, this once. As soon as there is a key, every request needs one."""
    from service.access import keys as commands

    key = _in_database(home, lambda session: commands.add(session, owner))
    if as_json:
        say_json({"owner": owner, "key": key})
        return
    say(key)
    say_note(
        f"This is the key of {owner}; it is not stored and cannot be shown again.",
        "To use it, set NIGHTSWEEP_API_KEY to it.",
    )


@keys.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """List the owners of API keys, revoked keys included."""
    from service.access import keys as commands

    found = _in_database(home, commands.list_keys)
    if as_json:
        say_json(
            [
                {
                    "owner": key.owner,
                    "created_at": key.created_at.isoformat(),
                    "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
                }
                for key in found
            ]
        )
        return
    table(
        ("owner", "created", "revoked"),
        [(key.owner, moment(key.created_at), moment(key.revoked_at)) for key in found],
        empty="No keys.",
    )


@keys.command()
def revoke(owner: Owner, home: Home = None) -> None:
    """Revoke an owner's key, from the next request on. The owner's studies continue."""
    from service.access import keys as commands

    _in_database(home, lambda session: commands.revoke(session, owner))
    say(f"The key of {owner} was revoked.")


def _in_database(home: Path | None, work: Callable[[Session], T]) -> T:
    settings = build_settings(home=home)
    with service_errors_explained():
        from service.db import database
        from service.maintenance import schema

        opened = database.open_database(settings)
        try:
            schema.check_schema(opened.engine)
            return opened.transact(work)
        finally:
            opened.dispose()
