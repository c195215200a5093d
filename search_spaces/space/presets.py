"""Presets: documented search spaces with a name, each read from a file, `search_spaces/presets/*.yaml`.

Every range and every fixed value cites its source in its file, beside the value.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from search_spaces.errors import UnknownPresetError
from search_spaces.faults import nearest_name
from search_spaces.space.search_space import SearchSpace


class Preset(BaseModel):
    """A search space with a name, and the recipe fields that it fixes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: Annotated[str, Field(min_length=1)]
    space: SearchSpace
    recipe: dict[str, Any]
    """Recipe fields the preset fixes; a study's own `recipe` wins over them."""
    sources: dict[str, str]
    """Recipe field -> where its range or value comes from."""


def _read(text: str) -> Preset:
    raw = yaml.safe_load(text)
    sources = {}
    for section in ("space", "recipe"):
        for name, entry in raw[section].items():
            sources[name] = " ".join(entry.pop("source").split())
    recipe = {name: entry["value"] for name, entry in raw["recipe"].items()}
    return Preset(
        name=raw["name"],
        description=" ".join(raw["description"].split()),
        space=SearchSpace.model_validate(raw["space"]),
        recipe=recipe,
        sources=sources,
    )


@cache
def _by_name() -> dict[str, Preset]:
    folder = resources.files("search_spaces") / "presets"
    presets = [_read(entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    # The cheapest first: fewest searched fields, then by name.
    presets.sort(key=lambda preset: (len(preset.space.parameters), preset.name))
    return {preset.name: preset for preset in presets}


def presets() -> tuple[Preset, ...]:
    """All presets, the smallest first."""
    return tuple(_by_name().values())


def preset_names() -> tuple[str, ...]:
    """Their names, in the same order."""
    return tuple(_by_name())


def get_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UnknownPresetError: There is none; the message lists those there are.
    """
    preset = _by_name().get(name)
    if preset is None:
        nearest = nearest_name(name, preset_names())
        hint = f"; did you mean {nearest!r}?" if nearest else "."
        raise UnknownPresetError(f"no preset {name!r}{hint} There are: {', '.join(preset_names())}.")
    return preset
