"""Commands that take a study's results elsewhere: export, adapter."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from search_spaces.values.artifact_layout import ADAPTER_FILES, HEAD_FILES
from search_spaces.wording import counted
from service.cli.errors import CommandError
from service.cli.options import Server, StudyName, connect
from service.cli.views.output import say, say_note
from service.cli.views.trials import trials_as_csv
from service.client import DEFAULT_SERVER, UnexpectedAnswerError


class ExportFormat(StrEnum):
    CSV = "csv"
    JSON = "json"


class Which(StrEnum):
    BEST = "best"
    LAST = "last"


def export(
    study: StudyName,
    export_format: Annotated[ExportFormat, typer.Option("--format", help="csv or json.")] = ExportFormat.CSV,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. Default: stdout.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Export all trials as CSV, one row each, or the study and its trials as JSON."""
    with connect(server) as client:
        found = client.study(study)
        all_trials = client.trials(found.id)
    if export_format is ExportFormat.CSV:
        text = trials_as_csv(all_trials)
    else:
        document = {"study": found.document(), "trials": [trial.document() for trial in all_trials]}
        text = json.dumps(document, indent=2) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    say_note(f"{counted(len(all_trials), 'trial')} written to {output}")


def adapter(
    study: StudyName,
    trial_number: Annotated[
        int | None,
        typer.Argument(metavar="[NUMBER]", help="The trial's number. Default: the best trial.", min=0),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The folder to create. Default: STUDY-NUMBER-WHICH.", show_default=False
        ),
    ] = None,
    which: Annotated[
        Which, typer.Option(help="The adapter from the trial's best rung, or from its end.")
    ] = Which.BEST,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Download a trial's adapter into a folder that PeftModel.from_pretrained reads."""
    with connect(server) as client, tempfile.TemporaryFile() as archive:
        found = client.study(study)
        chosen = client.best(found.id).number if trial_number is None else trial_number
        folder = output or Path(f"{found.name}-{chosen}-{which}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandError(f"{folder} already exists; choose another folder with --output")
        client.download_adapter(found.id, chosen, archive, which=which.value)
        archive.seek(0)
        try:
            with zipfile.ZipFile(archive) as files:
                unpack_adapter(files, folder)
        except zipfile.BadZipFile as error:
            raise UnexpectedAnswerError(client.server, f"the adapter cannot be unpacked: {error}") from error
        except OSError as error:
            raise CommandError(f"cannot write {folder}: {error.strerror}") from error
    say(str(folder))


def unpack_adapter(files: zipfile.ZipFile, folder: Path) -> None:
    """Unpacks beside `folder` and moves into place, so that a folder is whole or not there.

    Raises `zipfile.BadZipFile` for an archive of anything but the files of an adapter, not compressed:
    names that lead elsewhere, and a few bytes that fill the disk, are nothing a server of ours sends.
    """
    entries = files.infolist()
    allowed = (*ADAPTER_FILES, *HEAD_FILES)
    for entry in entries:
        if entry.filename not in allowed or entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"an adapter's archive has no {entry.filename[:200]!r}")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or not set(names) >= set(ADAPTER_FILES):
        raise zipfile.BadZipFile("an adapter's archive has each of its files once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as scratch:
        fresh = Path(scratch) / "files"
        fresh.mkdir()
        for entry in entries:
            with files.open(entry) as source, (fresh / entry.filename).open("xb") as target:
                shutil.copyfileobj(source, target)
        if folder.exists():
            folder.rmdir()
        shutil.move(fresh, folder)
