from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.faults import translate
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.recipe import SEARCHABLE_FIELDS, Recipe
from search_spaces.space.search_space import SearchSpace
from tests.support.search_spaces.spaces import raw_spaces, spaces


def faults(space: Any) -> dict[str, str]:
    """Path -> message of what keeps `space` from being a search space."""
    with pytest.raises(ValidationError) as caught:
        SearchSpace.model_validate(space)
    return {fault.path: fault.message for fault in translate(caught.value)}


def brute_force(parameter: Float | Int | Choice) -> list[Any]:
    """All values of a finite parameter, the slow way."""
    if isinstance(parameter, Choice):
        return list(parameter.choices)
    if isinstance(parameter, Int):
        return list(range(parameter.min, parameter.max + 1, parameter.step))
    assert parameter.step is not None
    values, value = [], Decimal(str(parameter.min))
    while value <= Decimal(str(parameter.max)):
        values.append(float(value))
        value += Decimal(str(parameter.step))
    return values


@given(spaces())
def test_every_space_survives_json(space: SearchSpace) -> None:
    stored = json.loads(json.dumps(space.model_dump(mode="json")))
    loaded = SearchSpace.model_validate(stored)
    assert loaded == space
    assert list(loaded.parameters) == list(space.parameters)


@given(spaces(finite=True))
def test_the_grid_is_the_product_with_the_last_parameter_fastest(space: SearchSpace) -> None:
    values = [brute_force(parameter) for parameter in space.parameters.values()]
    expected = [dict(zip(space.parameters, point, strict=True)) for point in itertools.product(*values)]
    assert list(space.grid_points()) == expected
    assert space.grid_size() == len(expected)


@given(spaces(finite=True))
def test_every_grid_point_makes_a_recipe_and_is_contained(space: SearchSpace) -> None:
    for point in itertools.islice(space.grid_points(), 50):
        recipe = Recipe.build(point)
        for name, value in point.items():
            assert getattr(recipe, name) == value
            assert space.parameters[name].contains(value)


@given(raw_spaces(), st.randoms(use_true_random=False))
def test_snap_stays_inside_and_is_idempotent(raw: dict[str, Any], random: Any) -> None:
    for parameter in SearchSpace.model_validate(raw).parameters.values():
        if not isinstance(parameter, Choice):
            wild = random.uniform(2 * parameter.min - parameter.max, 2 * parameter.max)
            value = parameter.snap(wild)
            assert parameter.min <= value <= parameter.max
            assert parameter.snap(value) == value
            assert parameter.contains(value)


def test_the_type_follows_the_recipe_field() -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate": {"min": 1, "max": 2},
            "batch_size": {"min": 1, "max": 2},
            "epochs": {"min": 1, "max": 3, "type": "int"},
            "lora_r": {"choices": [8, 4]},
        }
    )
    assert space.parameters == {
        "learning_rate": Float(min=1.0, max=2.0),
        "batch_size": Int(min=1, max=2),
        "epochs": Int(min=1, max=3),
        "lora_r": Choice(choices=(8, 4)),
    }


def test_stepped_floats_are_the_decimals_a_person_wrote() -> None:
    parameter = Float(min=0.1, max=0.5, step=0.1)
    assert [parameter.value_at(i) for i in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert parameter.size == 5


def test_a_range_that_does_not_end_on_a_step_stops_before_max() -> None:
    assert Float(min=0.0, max=1.0, step=0.3).last == 0.9
    assert Int(min=1, max=10, step=4).last == 9


def test_a_continuous_range_has_no_grid() -> None:
    space = SearchSpace.model_validate(
        {"learning_rate": {"min": 1e-5, "max": 1e-3}, "lora_r": {"choices": [4]}}
    )
    assert space.grid_size() is None
    with pytest.raises(ValueError, match="continuous"):
        space.grid_points()
    with pytest.raises(ValueError, match="continuous"):
        space.grid_point(0)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_grid_point_outside_the_grid_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        SearchSpace.model_validate({"lora_r": {"choices": [4, 8]}}).grid_point(index)


def test_choices_become_what_the_recipe_field_holds() -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate": {"choices": [1e-5, 1]},
            "lora_r": {"choices": [4.0, 8]},
            "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
        }
    )
    points = list(space.grid_points())
    assert points[0] == {"learning_rate": 1e-5, "lora_r": 4, "target_modules": "attention"}
    assert points[-1] == {"learning_rate": 1.0, "lora_r": 8, "target_modules": ("q_proj", "v_proj")}
    assert [type(point["lora_r"]) for point in points] == [int] * 8


def test_lists_of_names_are_json_text_to_optuna_and_come_back() -> None:
    space = SearchSpace.model_validate({"target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]}})
    choice = space.parameters["target_modules"]
    assert isinstance(choice, Choice)
    assert choice.encoded == ("attention", '["q_proj", "v_proj"]')
    decoded = [space.decode({"target_modules": encoded}) for encoded in choice.encoded]
    assert decoded == [{"target_modules": "attention"}, {"target_modules": ("q_proj", "v_proj")}]


def test_a_range_whose_ends_are_whole_numbers_is_one_of_reals_where_the_field_is_real() -> None:
    space = SearchSpace.model_validate({"weight_decay": {"min": 0, "max": 1}})
    assert space.parameters == {"weight_decay": Float(min=0.0, max=1.0)}


@pytest.mark.parametrize(
    ("parameter", "path"),
    [
        ({"min": 1e-3, "max": 1e-5}, "min"),
        ({"min": 1e-3, "max": 1e-3}, "min"),
        ({"min": 0, "max": 1, "scale": "log"}, "min"),
        ({"min": 0, "max": 1}, "min"),
        ({"min": -1, "max": 1}, "min"),
        ({"min": 1e-5, "max": math.inf}, "max"),
        ({"min": math.nan, "max": 1}, "min"),
        ({"min": "nan", "max": 1}, "min"),
        ({"min": True, "max": 2}, "min"),
        ({"min": 1e-5}, "max"),
        ({"max": 1e-5}, "min"),
        ({"min": 1e-5, "max": 1e-3, "scale": "lg"}, "scale"),
        ({"min": 1e-5, "max": 1e-3, "scale": ["log"]}, "scale"),
        ({"min": 1e-5, "max": 1e-3, "type": "flaot"}, "type"),
        ({"min": 1e-5, "max": 1e-3, "type": ["float"]}, "type"),
        ({"min": 1e-5, "max": 1e-3, "stp": 1}, "stp"),
        ({"min": 0.1, "max": 0.2, "step": 0.2}, "step"),
        ({"min": 0.1, "max": 0.2, "step": 0}, "step"),
        ({"min": 0.1, "max": 0.2, "step": -0.1}, "step"),
        ({"min": 0.1, "max": 0.2, "step": 1e-300}, "step"),
        ({"min": 1.2345678901234567e-5, "max": 0.9, "step": 0.1}, "step"),
        ({"min": 0.1, "max": 0.4, "step": 0.1, "scale": "log"}, "step"),
        ({"choices": []}, "choices"),
        ({"choices": "abc"}, "choices"),
        ({"choices": [1, 1.0]}, "choices.1"),
        ({"choices": [1e-5, "1e-5"]}, "choices.1"),
        ({"min": "1e-5", "max": 1e-3}, "min"),
        ({"choices": [1e-5, -1]}, "choices.1"),
        ({"choices": [1e-5, {"a": 1}]}, "choices.1"),
        ({"choices": [math.nan]}, "choices.0"),
        ({"choices": [1e-5], "min": 1}, ""),
        ({"type": "choice", "min": 1, "max": 2}, "choices"),
        ({}, ""),
        ({"value": 1e-4}, ""),
        (1e-4, ""),
        (None, ""),
        ([1e-4, 1e-3], ""),
    ],
    ids=repr,
)
def test_a_wrong_learning_rate_is_refused_at_its_place(parameter: Any, path: str) -> None:
    expected = f"learning_rate.{path}" if path else "learning_rate"
    assert expected in faults({"learning_rate": parameter})


@pytest.mark.parametrize(
    ("name", "parameter", "path"),
    [
        ("lora_r", {"choices": [0, 8]}, "lora_r.choices.0"),
        ("lora_r", {"choices": [True]}, "lora_r.choices.0"),
        ("lora_r", {"choices": [4.5]}, "lora_r.choices.0"),
        ("lora_r", {"min": 0, "max": 8}, "lora_r.min"),
        ("lora_r", {"min": 1, "max": 2.5}, "lora_r.max"),
        ("lora_r", {"min": 1, "max": 10**12}, "lora_r.max"),
        ("lora_r", {"min": 1, "max": 8, "step": 8}, "lora_r.step"),
        ("lora_r", {"min": 1, "max": 8, "step": 2, "scale": "log"}, "lora_r.step"),
        ("lora_r", {"min": 1, "max": 8, "type": "float"}, "lora_r.type"),
        ("batch_size", {"choices": [-1]}, "batch_size.choices.0"),
        ("lora_dropout", {"min": 0, "max": 1}, "lora_dropout.max"),
        ("weight_decay", {"min": 0, "max": 1, "scale": "log"}, "weight_decay.min"),
        ("lr_scheduler", {"choices": ["cosin"]}, "lr_scheduler.choices.0"),
        ("lr_scheduler", {"min": 1, "max": 2}, "lr_scheduler"),
        ("use_rslora", {"choices": ["yes"]}, "use_rslora.choices.0"),
        ("target_modules", {"choices": [[]]}, "target_modules.choices.0"),
        ("target_modules", {"choices": ["q_proj"]}, "target_modules.choices.0"),
        ("seed", {"min": 1, "max": 8}, "seed"),
        ("lr", {"min": 1, "max": 8}, "lr"),
    ],
)
def test_values_the_recipe_field_cannot_hold_are_refused(name: str, parameter: Any, path: str) -> None:
    assert list(faults({name: parameter})) == [path]


@pytest.mark.parametrize("space", [{}, [], None, 3, "tpe"], ids=repr)
def test_a_space_without_parameters_is_refused(space: Any) -> None:
    assert list(faults(space)) == [""]


def test_all_faults_of_a_space_are_found_at_once() -> None:
    space = {
        "learning_rate": {"min": 0, "max": 1, "scale": "log"},
        "lora_r": {"choices": [0, 8, 8]},
        "wieght_decay": {"min": 0, "max": 1},
    }
    assert sorted(faults(space)) == ["learning_rate.min", "lora_r.choices.2", "wieght_decay"]


def test_every_recipe_field_but_the_seed_is_searchable() -> None:
    assert {*Recipe.model_fields} - {*SEARCHABLE_FIELDS} == {"seed"}


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Float(min=0.1, max=0.2).min = 0.0


@pytest.mark.parametrize(
    ("space", "path"),
    [
        ({"learning_rate": {"min": 1e-4, "max": 1e-4 * (1 + 2e-15)}}, "learning_rate.min"),
        ({"weight_decay": {"min": 1e6, "max": 1e6 + 1e-6, "step": 1e-7}}, "weight_decay.step"),
        ({"learning_rate": {"choices": [1e-4, 1e-4 * (1 + 2e-15)]}}, "learning_rate.choices.1"),
        ({"target_modules": {"choices": [["q", "v"], ["v", "q"]]}}, "target_modules.choices.1"),
    ],
)
def test_values_that_make_equal_trials_are_not_two_values(space: dict[str, Any], path: str) -> None:
    assert list(faults(space)) == [path]
