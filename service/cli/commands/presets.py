"""The command about presets."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.options import Json, Server, connect
from service.cli.views.output import say, say_json, table
from service.client import DEFAULT_SERVER
from service.presets.schemas import SearchSpaceView
from service.wording.values import setting, settings_line


def search_spaces(
    name: Annotated[str | None, typer.Argument(help="A preset's name. Default: all presets.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List the presets of search spaces, or show one with the sources of its values."""
    with connect(server) as client:
        if name is None:
            presets = client.presets()
            if as_json:
                say_json([space.document() for space in presets])
                return
            rows = [(space.name, ", ".join(space.parameters), space.description) for space in presets]
            table(("name", "searches", "description"), rows, empty="No presets.")
            return
        space = client.preset(name)
    if as_json:
        say_json(space.document())
        return
    say(space.name, f"  {space.description}", "Searched")
    for parameter, values in space.parameters.items():
        given = {key: value for key, value in values.items() if value is not None}
        say(f"  {parameter}: {settings_line(given)}", *_source(space, parameter))
    if space.recipe:
        say("Fixed")
        for key, value in space.recipe.items():
            say(f"  {key}: {setting(value)}", *_source(space, key))


def _source(space: SearchSpaceView, field: str) -> list[str]:
    return [f"    {space.sources[field]}"] if field in space.sources else []
