"""Presets are valid, cite their sources and are found by name."""

from __future__ import annotations

import pytest

from search_spaces.errors import UnknownPresetError
from search_spaces.parameters.choices import Choice
from search_spaces.recipe import Recipe
from search_spaces.space.presets import get_preset, preset_names, presets


def test_there_are_three_presets_from_small_to_large() -> None:
    assert preset_names() == ("qlora-quick", "qlora-default", "qlora-thorough")


@pytest.mark.parametrize("name", preset_names())
def test_every_range_and_value_of_a_preset_cites_its_source(name: str) -> None:
    preset = get_preset(name)
    assert set(preset.sources) == set(preset.space.parameters) | set(preset.recipe)
    assert all(len(source) > 20 for source in preset.sources.values())
    assert len(preset.description) > 100


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_searches_and_fixes_different_fields_with_valid_values(name: str) -> None:
    preset = get_preset(name)
    assert set(preset.space.parameters) & set(preset.recipe) == set()
    Recipe.build(preset.recipe)
    for parameter in preset.space.parameters.values():
        assert not isinstance(parameter, Choice) or len(parameter.choices) > 1


def test_the_default_preset_searches_the_five_hyperparameters_of_the_mission() -> None:
    expected = ["learning_rate", "batch_size", "epochs", "weight_decay", "lora_r"]
    assert list(get_preset("qlora-default").space.parameters) == expected


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownPresetError, match="did you mean 'qlora-quick'"):
        get_preset("qlora-qick")


def test_presets_are_what_get_preset_gives() -> None:
    assert presets() == tuple(get_preset(name) for name in preset_names())
