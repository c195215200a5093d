"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.errors import CommandError
from service.client import DEFAULT_SERVER, Client

Server = Annotated[
    str,
    typer.Option(
        "--server", envvar="NIGHTSWEEP_SERVER", help="The server's address.", rich_help_panel="Connection"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON and nothing else.")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name or id.", show_default=False)]
StudyFile = Annotated[
    Path,
    typer.Argument(metavar="STUDY.yaml", help="The study's definition, YAML or JSON.", show_default=False),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default=False)]
Home = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded databases and artifacts.", show_default=False),
]
RayAddress = Annotated[
    str | None, typer.Option(help="Address of the Ray cluster to attach to.", show_default=False)
]


def connect(server: str) -> Client:
    """A client for the server an option or `NIGHTSWEEP_SERVER` names, with the key the environment holds."""
    try:
        return Client(server or DEFAULT_SERVER, api_key=os.environ.get("NIGHTSWEEP_API_KEY") or None)
    except ValueError as error:
        raise CommandError(f"--server: {error}") from error


def given(**overrides: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in overrides.items() if value is not None}
