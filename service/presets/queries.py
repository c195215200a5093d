"""The presets, as the REST API shows them."""

from __future__ import annotations

from search_spaces.errors import UnknownPresetError
from search_spaces.space.presets import Preset, get_preset, presets
from service.errors import NotFound
from service.presets.schemas import SearchSpaceView


def list_presets() -> list[SearchSpaceView]:
    """All of them, the smallest first."""
    return [_view(preset) for preset in presets()]


def find_preset(name: str) -> SearchSpaceView:
    """The preset of this name. Raises `NotFound`."""
    try:
        return _view(get_preset(name))
    except UnknownPresetError as error:
        raise NotFound(str(error)) from None


def _view(preset: Preset) -> SearchSpaceView:
    return SearchSpaceView(
        name=preset.name,
        description=preset.description,
        parameters=preset.space.model_dump(mode="json"),
        recipe=preset.recipe,
        sources=preset.sources,
    )
