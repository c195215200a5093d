"""Commands that take a study's results elsewhere: export, adapter."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.errors import CommandError
from service.cli.options import DEFAULT_SERVER, Server, StudyName, connect
from service.cli.views.output import say, say_note
from service.client import UnexpectedAnswerError
from service.trials.schemas import TrialView

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


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
    say_note(f"{len(all_trials)} trials written to {output}")


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
            raise CommandError(f"{folder} exists already; name another folder with -o")
        client.download_adapter(found.id, chosen, archive, which=which.value)
        archive.seek(0)
        try:
            with zipfile.ZipFile(archive) as files:
                _unpack(files, folder)
        except zipfile.BadZipFile as error:
            raise UnexpectedAnswerError(client.server, f"the adapter cannot be unpacked: {error}") from error
        except OSError as error:
            raise CommandError(f"cannot write {folder}: {error.strerror}") from error
    say(str(folder))


def trials_as_csv(trials: Sequence[TrialView]) -> str:
    """One row per trial.

    Searched hyperparameters are in `params.NAME`, fixed ones in `recipe.NAME`, metrics at the best rung in
    `metrics.NAME`.
    """
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    recipes = dict.fromkeys(name for trial in trials for name in trial.recipe or {})
    fixed = [name for name in recipes if name not in params]
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics or {}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "state", "value", "best_rung", "repeat_of", "seed", "feasible"]
        + [f"params.{name}" for name in params]
        + [f"recipe.{name}" for name in fixed]
        + [f"metrics.{name}" for name in metrics]
        + ["examples_seen", "train_seconds", "peak_memory_bytes", "predicted_memory_bytes"]
        + ["useful_token_share", "gradient_noise_scale", "diagnosis"]
        + ["started_at", "ended_at", "adapter", "reason"]
    )
    for trial in trials:
        cells: list[Any] = [trial.number, trial.state, trial.value, trial.best_rung]
        cells += [trial.repeat_of, trial.seed, _cell(trial.feasible)]
        cells += [_cell(trial.params.get(name)) for name in params]
        cells += [_cell((trial.recipe or {}).get(name)) for name in fixed]
        cells += [(trial.metrics or {}).get(name) for name in metrics]
        cells += [trial.examples_seen, trial.train_seconds, trial.peak_memory_bytes]
        cells += [trial.predicted_memory_bytes, trial.useful_token_share, trial.gradient_noise_scale]
        cells += [" ".join(finding.verdict for finding in trial.diagnosis)]
        cells += [at.isoformat() if at else None for at in (trial.started_at, trial.ended_at)]
        writer.writerow([*cells, trial.adapter.path if trial.adapter else None, trial.reason])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value


def _unpack(files: zipfile.ZipFile, folder: Path) -> None:
    """Unpacks beside `folder` and moves into place, so that a folder is whole or not there.

    Raises `zipfile.BadZipFile` for an archive of anything but the two files of an adapter, not compressed:
    names that lead elsewhere, and a few bytes that fill the disk, are nothing a server of ours sends.
    """
    entries = files.infolist()
    for entry in entries:
        if entry.filename not in _ADAPTER_FILES or entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"an adapter's archive has no {entry.filename[:200]!r}")
    if sorted(entry.filename for entry in entries) != sorted(_ADAPTER_FILES):
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
