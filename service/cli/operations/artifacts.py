"""`nightsweep artifacts`: removing adapters and checkpoints that nobody needs, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.wording import counted
from service.cli.errors import REFUSED, Commands
from service.cli.in_process import build_settings, service_errors_explained
from service.cli.options import Home, Json
from service.cli.views.output import say, say_error, say_json, table

if TYPE_CHECKING:
    from service.artifacts.commands import Removal
    from service.settings import Settings

artifacts = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Remove adapters and checkpoints that are no longer needed."
)


@artifacts.command()
def sweep(
    keep_best: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="How many of each study's best trials keep their adapters. Default: "
            "NIGHTSWEEP_KEEP_BEST_ADAPTERS, or all if that is not set.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
    unknown_studies: Annotated[
        bool,
        typer.Option(
            "--unknown-studies",
            help="Also remove folders of studies that are not in this database and have not changed for "
            "a day. Another service that stores its artifacts in the same place would lose them.",
        ),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove what ended studies no longer need: checkpoints, and adapters that are not among the best.

    Studies that have not ended are not touched. The service may be running.
    """
    settings = build_settings(home=home, keep_best_adapters=keep_best)
    with service_errors_explained():
        done = _sweep(settings, dry_run=dry_run, unknown_studies=unknown_studies)
    refused = [(removal, why) for removal, why in done if why is not None]
    freed = [removal for removal, why in done if why is None]
    if as_json:
        say_json(
            {
                "dry_run": dry_run,
                "keep_best": settings.keep_best_adapters,
                "removed": [_document(removal) for removal in freed],
                "bytes": sum(removal.bytes for removal in freed),
                "refused": [{**_document(removal), "error": why} for removal, why in refused],
            }
        )
    else:
        _show(freed, dry_run=dry_run)
    for removal, why in refused:
        say_error(f"{removal.place} could not be removed: {why}")
    if refused:
        raise typer.Exit(REFUSED)


def _sweep(
    settings: Settings, *, dry_run: bool, unknown_studies: bool
) -> Sequence[tuple[Removal, str | None]]:
    """What was removed, or would be, each with the reason why it could not be, if any."""
    from service.artifacts import commands, places
    from service.db import database as databases
    from service.maintenance import schema
    from service.optuna_store.storage import close_storage, open_storage

    schema.check_schemas(settings)
    database = databases.open_database(settings)
    storage = open_storage(settings)
    try:
        where = places.open_places(settings)
        planned = list(commands.plan(database, storage, where, keep=settings.keep_best_adapters))
        if unknown_studies:
            planned += commands.plan_unknown(database, where)
        if dry_run:
            return [(each.removal, None) for each in planned]
        return list(commands.carry_out(database, planned))
    finally:
        close_storage(storage)
        database.dispose()


def _show(removals: Sequence[Removal], *, dry_run: bool) -> None:
    table(
        ("study", "what", "bytes", "why", "place"),
        [(r.study or r.study_id, r.kind, f"{r.bytes:,}", r.reason, r.place) for r in removals],
        empty="Nothing to remove.",
    )
    if removals:
        total = sum(removal.bytes for removal in removals)
        end = "would be removed" if dry_run else "removed"
        say(f"{counted(len(removals), 'folder')}, {total:,} bytes {end}.")


def _document(removal: Removal) -> dict[str, Any]:
    folder = removal.folder
    return {
        "place": removal.place,
        "study_id": removal.study_id,
        "study": removal.study,
        "kind": removal.kind,
        "trial": None if folder is None else folder.trial,
        "attempt": None if folder is None else folder.ordinal,
        "bytes": removal.bytes,
        "reason": removal.reason,
    }
