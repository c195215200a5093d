"""Commands that control a study after its submission, beside pause, resume and cancel."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from service.cli.errors import CommandError
from service.cli.options import Json, Server, StudyName, connect
from service.cli.views.output import say, say_json, table
from service.client import DEFAULT_SERVER
from service.definitions.syntax import parse_yaml
from service.errors import Unreadable
from service.studies.schemas import StudyView
from service.wording.values import moment, one_line, settings_line

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


def enqueue(
    study: StudyName,
    params: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Searched recipe fields with their values; the sampler chooses the others. None: list "
            "what was enqueued.",
            show_default=False,
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Have the next trial use these values: nightsweep enqueue tone learning_rate=1e-4 lora_r=16"""
    if not params:
        _list_enqueued(study, server, as_json=as_json)
        return
    given = read_params(params)
    with connect(server) as client:
        made = client.enqueue(study, given)
    if as_json:
        say_json(made.document())
    else:
        say(f"Enqueued as number {made.id}: the next trial of {study} has {settings_line(made.params)}.")


def _list_enqueued(study: str, server: str, *, as_json: bool) -> None:
    with connect(server) as client:
        found = client.enqueued(study)
    if as_json:
        say_json([recipe.document() for recipe in found])
        return
    table(
        ("id", "state", "trial", "asked by", "parameters", "reason"),
        [
            (
                recipe.id,
                recipe.state,
                "-" if recipe.trial_number is None else recipe.trial_number,
                recipe.asked_by,
                settings_line(recipe.params),
                recipe.reason or "-",
            )
            for recipe in found
        ],
        empty="Nothing was enqueued.",
    )


def read_params(words: list[str]) -> dict[str, Any]:
    """Parameters of a command line, whose values are read as YAML. Raises `CommandError`."""
    params: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise CommandError(f"{word}: must be FIELD=VALUE, for example learning_rate=1e-4")
        if name in params:
            raise CommandError(f"{name}: was given twice")
        try:
            params[name] = parse_yaml(value.encode())
        except Unreadable as error:
            raise CommandError(f"{word}: {error.detail}") from error
    return params


def extend(
    study: StudyName,
    trials: Annotated[str | None, typer.Option(metavar="+N", help="More trials.", show_default=False)] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="+TIME", help="More time, such as +2h.", show_default=False)
    ] = None,
    max_gpu_hours: Annotated[
        str | None, typer.Option(metavar="+N", help="More GPU-hours.", show_default=False)
    ] = None,
    max_failed_trials: Annotated[
        str | None, typer.Option(metavar="+N", help="More trials that may fail.", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Give a study more of what bounds it: nightsweep extend tone --trials +20

    A study that has ended is queued again and goes on from its trials.
    """
    more = {
        "trials": trials,
        "timeout": timeout,
        "max_gpu_hours": max_gpu_hours,
        "max_failed_trials": max_failed_trials,
    }
    amounts = {name: f"+{amount.removeprefix('+')}" for name, amount in more.items() if amount is not None}
    if not amounts:
        raise CommandError(f"say what to extend: {', '.join(f'--{name}' for name in more).replace('_', '-')}")
    with connect(server) as client:
        found = client.extend(study, **amounts)
    last = f"{found.trials_requested} trials" if found.trials_requested else "its trials"
    _say(
        found,
        f"Study {found.name} is {found.state}, with {last} in all. "
        f"Watch it with: nightsweep watch {found.name}",
        as_json,
    )


def archive(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Hide a study from lists. Nothing else changes."""
    with connect(server) as client:
        found = client.archive(study)
    _say(
        found,
        f"Study {found.name} is archived. Show it in lists again: nightsweep unarchive {found.name}",
        as_json,
    )


def unarchive(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show an archived study in lists again."""
    with connect(server) as client:
        found = client.unarchive(study)
    _say(found, f"Study {found.name} is not archived.", as_json)


def delete(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Delete a study that has ended, with its trials and adapters. For some days it can be restored."""
    with connect(server) as client:
        found = client.delete(study)
    _say(
        found,
        f"Study {found.name} is deleted. Until {moment(found.removal_at)} it can be restored: "
        f"nightsweep restore {found.name}",
        as_json,
    )


def restore(study: StudyName, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Restore a deleted study, as long as it has not been removed for good."""
    with connect(server) as client:
        found = client.restore(study)
    _say(found, f"Study {found.name} is not deleted; it is {found.state}.", as_json)


def _say(found: StudyView, words: str, as_json: bool) -> None:
    if as_json:
        say_json(found.document())
    else:
        say(words)
