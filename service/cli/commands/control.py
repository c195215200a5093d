"""Commands that control a study after its submission, beside pause, resume and cancel."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from service.cli.errors import CommandError
from service.cli.options import Json, Server, StudyName, connect
from service.cli.views.output import say, say_json
from service.client import DEFAULT_SERVER
from service.wording.values import one_line

_REMOVAL = re.compile(r"-(?!h$)[A-Za-z0-9][A-Za-z0-9._:/=-]*")


class TagCommand(TyperCommand):
    """Takes `-tag` for a tag to remove, where others see an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" not in args:
            removals = [word for word in args if _REMOVAL.fullmatch(word)]
            args = [word for word in args if word not in removals] + (["--", *removals] if removals else [])
        return super().parse_args(ctx, args)


def tag(
    study: StudyName,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="+TAG|-TAG...", help="Tags to add and tags to remove.", show_default=False),
    ],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Add tags to a study and remove others: nightsweep tag tone +baseline -draft"""
    words = [word if word[0] in "+-" else f"+{word}" for word in changes if word]
    add, remove = ({word[1:] for word in words if word[0] == sign} for sign in "+-")
    if both := sorted(add & remove):
        raise CommandError(f"{', '.join(both)}: to be added and to be removed")
    with connect(server) as client:
        found = client.change_tags(study, add=add, remove=remove)
    if as_json:
        say_json(found.document())
    else:
        tags = f"has the tags {' '.join(found.tags)}" if found.tags else "has no tags"
        say(f"Study {found.name} {tags}.")


def note(
    study: StudyName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The note; "" removes it.', show_default=False)],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Write a note on a study. It replaces the one that is there."""
    with connect(server) as client:
        found = client.label(study, note=text)
    if as_json:
        say_json(found.document())
    else:
        say(
            f"Study {found.name}: {one_line(found.note)}"
            if found.note
            else f"Study {found.name} has no note."
        )


def stop(
    study: StudyName,
    number: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="The trial's number.")],
    reason: Annotated[
        str | None, typer.Option(help="Why; the trial's own reason repeats it.", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """End one trial early. The study goes on; the trial counts towards search.trials."""
    with connect(server) as client:
        found = client.stop_trial(study, number, reason=reason)
    if as_json:
        say_json(found.document())
    else:
        say(f"Trial {found.number} of {study} is being stopped; it is {found.state} now.")
