"""The command about a schedule's champion."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from service.cli.commands.results import unpack_adapter
from service.cli.errors import CommandError
from service.cli.options import Json, Server, connect
from service.cli.views.champions import show_champion, show_history
from service.cli.views.output import say, say_json
from service.client import DEFAULT_SERVER, UnexpectedAnswerError


def champion(
    schedule: Annotated[
        str, typer.Argument(metavar="SCHEDULE", help="A schedule's name or id.", show_default=False)
    ],
    history: Annotated[
        bool, typer.Option("--history", help="Show what each sweep decided, and who reigned.")
    ] = False,
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Download its adapter into this new folder.", show_default=False),
    ] = None,
    promote: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY/TRIAL", help="Make the adapter of this trial the champion.", show_default=False
        ),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Bring back the champion before the present one.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show the best adapter of a schedule so far, on the eval data of its latest sweep."""
    chosen = [history, download is not None, promote is not None, rollback]
    if sum(chosen) > 1:
        raise CommandError("choose one of --history, --download, --promote and --rollback")
    with connect(server) as client:
        if history:
            found = client.champion_history(schedule)
            say_json(found.document()) if as_json else show_history(found)
            return
        if download is not None:
            _download(schedule, download, server)
            return
        if promote is not None:
            study, number = _trial(promote)
            shown = client.promote_champion(schedule, study, number)
        else:
            shown = client.roll_back_champion(schedule) if rollback else client.champion(schedule)
    if as_json:
        say_json(shown.document())
    else:
        show_champion(shown)


def _trial(text: str) -> tuple[str, int]:
    study, slash, number = text.rpartition("/")
    if not (slash and study and number.isdecimal() and number.isascii() and len(number) < 10):
        raise CommandError(f"--promote {text!r}: expected STUDY/TRIAL, for example nightly-20260102-0200/7")
    return study, int(number)


def _download(schedule: str, folder: Path, server: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{folder} already exists; choose another folder")
    with connect(server) as client, tempfile.TemporaryFile() as archive:
        client.download_champion(schedule, archive)
        archive.seek(0)
        try:
            with zipfile.ZipFile(archive) as files:
                unpack_adapter(files, folder)
        except zipfile.BadZipFile as error:
            raise UnexpectedAnswerError(client.server, f"the adapter cannot be unpacked: {error}") from error
        except OSError as error:
            raise CommandError(f"cannot write {folder}: {error.strerror}") from error
    say(str(folder))
