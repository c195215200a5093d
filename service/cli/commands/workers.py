"""Commands about workers and GPUs: what they do, which GPUs were put aside, and restoring one."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.errors import Commands
from service.cli.options import Json, Server, connect
from service.cli.views.output import say, say_json, table
from service.client import DEFAULT_SERVER
from service.wording.values import moment

workers = typer.Typer(
    cls=Commands,
    help="Show the workers that are training and the GPUs that were put aside, or restore a GPU.",
)


@workers.callback(invoke_without_command=True)
def show(context: typer.Context, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Show the workers that are training, and the GPUs that were put aside because workers died on them."""
    if context.invoked_subcommand is not None:
        return
    with connect(server) as client:
        found = client.workers()
    if as_json:
        say_json(found.document())
        return
    table(
        ("worker", "study", "trials", "device", "gpu", "since"),
        [
            (
                worker.id,
                worker.study,
                ", ".join(str(trial.number) for trial in worker.trials),
                worker.device or "-",
                worker.device_id or "-",
                moment(worker.since),
            )
            for worker in found.workers
        ],
        empty="No worker is training.",
    )
    if found.devices:
        say("")
        table(
            ("gpu", "put aside", "restored", "reason"),
            [(d.id, moment(d.put_aside_at), moment(d.restored_at), d.reason) for d in found.devices],
            empty="",
        )


@workers.command()
def restore(
    device: Annotated[str, typer.Argument(metavar="GPU", help="A GPU's id.", show_default=False)],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Restore a GPU that was put aside, so that it gets trials again."""
    with connect(server) as client:
        restored = client.restore_device(device)
    if as_json:
        say_json(restored.document())
    else:
        say(f"GPU {restored.id} gets trials again.")
