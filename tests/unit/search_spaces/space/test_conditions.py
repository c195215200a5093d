"""Conditional parameters: what is active when, what a grid makes of it, and what is refused.

One file, because its properties share their strategies and the brute force that they are held against.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces.faults import translate
from search_spaces.parameters.choices import Choice, encode_choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.recipe import Recipe
from search_spaces.space.counting import Dimension, TooManyConditionsError, count
from search_spaces.space.search_space import SearchSpace
from tests.support.search_spaces.spaces import conditional_spaces

MOST_POINTS = 1_000
"""Of the whole product, in the slow way of counting."""

few = settings(max_examples=40)

BY_OPTIMIZER: dict[str, Any] = {
    "sgd_momentum": {"choices": [0.0, 0.9]},
    "optimizer": {"choices": ["adamw", "sgd"]},
    "lora_r": {"min": 1, "max": 3, "when": {"optimizer": "sgd"}},
}


def faults(space: Any) -> dict[str, str]:
    """Path -> message of what keeps `space` from being a search space."""
    with pytest.raises(ValidationError) as caught:
        SearchSpace.model_validate(space)
    return {fault.path: fault.message for fault in translate(caught.value)}


def is_active(space: SearchSpace, name: str, values: dict[str, Any]) -> bool:
    """By the letter of the definition: every field named is active and has one of the values named."""
    return all(
        values[parent] in allowed and is_active(space, parent, values)
        for parent, allowed in space.root[name].when.items()
    )


def brute_force(space: SearchSpace, of_grid: bool) -> list[dict[str, Any]]:
    """Every point of the whole product, without what is inactive in it, each once."""
    every = []
    for parameter in space.root.values():
        size = parameter.grid_size if of_grid else parameter.size
        assert size is not None
        every.append([(parameter.grid_value if of_grid else parameter.value_at)(i) for i in range(size)])
    assume(math.prod(map(len, every)) <= MOST_POINTS)
    points: list[dict[str, Any]] = []
    seen = set()
    for product in itertools.product(*every):
        values = dict(zip(space.root, product, strict=True))
        point = {name: value for name, value in values.items() if is_active(space, name, values)}
        if tuple(point.items()) not in seen:
            seen.add(tuple(point.items()))
            points.append(point)
    return points


@few
@given(conditional_spaces(finite=True))
def test_a_conditional_grid_is_the_product_deactivated_and_deduplicated(space: SearchSpace) -> None:
    assume(space.grid_size() is not None)
    expected = brute_force(space, of_grid=True)
    assert list(space.grid_points()) == expected
    assert [space.grid_point(index) for index in range(len(expected))] == expected
    assert space.grid_size() == len(expected)


@few
@given(conditional_spaces(finite=True))
def test_points_are_all_there_is_to_suggest_each_once(space: SearchSpace) -> None:
    assume(space.size() is not None)
    expected = brute_force(space, of_grid=False)
    assert list(space.points()) == expected
    assert space.size() == len(expected)


@few
@given(conditional_spaces())
def test_every_conditional_space_survives_json_and_yaml(space: SearchSpace) -> None:
    dumped = space.model_dump(mode="json")
    from_json = SearchSpace.model_validate(json.loads(json.dumps(dumped)))
    from_yaml = SearchSpace.model_validate(yaml.safe_load(yaml.safe_dump(dumped, sort_keys=False)))
    assert from_json == from_yaml == space
    assert list(from_json.root) == list(from_yaml.root) == list(space.root)
    assert from_json.model_dump(mode="json") == dumped


def some_points(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """The first value of each parameter, and the last, in all combinations; every parameter has one."""
    ends = []
    for parameter in space.root.values():
        if isinstance(parameter, Choice):
            ends.append([parameter.choices[0], parameter.choices[-1]])
        else:
            ends.append([parameter.min, parameter.last])
    for product in itertools.islice(itertools.product(*ends), 16):
        yield dict(zip(space.root, product, strict=True))


@few
@given(conditional_spaces())
def test_a_point_without_its_inactive_parameters_is_one_of_the_space(space: SearchSpace) -> None:
    for values in some_points(space):
        active = space.active(values)
        assert list(active) == [name for name in space.root if is_active(space, name, values)]
        pruned = space.prune_inactive(values)
        assert pruned == {name: values[name] for name in active}
        assert space.active(pruned) == active
        assert space.contains(pruned)
        assert space.contains(values) == (len(active) == len(values))
        for name in active:
            rest = {other: value for other, value in pruned.items() if other != name}
            # A space of one parameter has a point without parameters only if it is conditional: never.
            assert not space.contains(rest) or name not in space.active(rest)
        Recipe.build(pruned)


@few
@given(conditional_spaces())
def test_a_configuration_has_one_key_however_it_is_written(space: SearchSpace) -> None:
    for values in some_points(space):
        pruned = space.prune_inactive(values)
        key = space.configuration_key(pruned)
        stored = {name: encode_choice(value) for name, value in pruned.items()}
        assert space.decode(stored) == pruned
        assert space.configuration_key(json.loads(json.dumps(stored))) == key
        assert space.configuration_key(json.loads(json.dumps(pruned))) == key
        assert space.configuration_key(dict(reversed(pruned.items()))) == key
        # What is inactive does not count, and what is active does.
        assert space.configuration_key(values) == key
        assert space.contains(stored)


@few
@given(conditional_spaces(finite=True))
def test_different_grid_points_have_different_keys(space: SearchSpace) -> None:
    assume((space.grid_size() or MOST_POINTS) < MOST_POINTS)
    points = list(space.grid_points())
    assert len({space.configuration_key(point) for point in points}) == len(points)
    assert all(space.contains(point) and space.active(point) == tuple(point) for point in points)


@few
@given(conditional_spaces(), st.randoms(use_true_random=False))
def test_narrowing_leaves_points_inside_and_the_rest_as_it_was(space: SearchSpace, luck: Any) -> None:
    for name, parameter in space.root.items():
        conditions = [other.when.get(name, ()) for other in space.root.values()]
        if isinstance(parameter, Choice) or any(conditions):
            continue
        low, high = sorted(luck.uniform(parameter.min, parameter.max) for _ in range(2))
        try:
            narrowed = space.narrowed(name, low, high)
        except ValueError:
            # Fewer than two points are left of a stepped range, or numbers for so many points.
            assert parameter.size is not None or high - low < 1e-9
            continue
        new = narrowed.root[name]
        assert not isinstance(new, Choice)
        assert low <= new.min < new.last <= new.max <= high
        assert parameter.contains(new.min)
        assert parameter.contains(new.last)
        if isinstance(new, Float) and new.step is None:
            assert (new.min, new.max) == (low, high)
        assert (new.scale, new.step, new.points) == (parameter.scale, parameter.step, parameter.points)
        assert new.when == parameter.when
        assert {**narrowed.root, name: parameter} == space.root


def test_an_optimizers_own_fields_are_conditional_on_it_without_saying_so() -> None:
    space = SearchSpace.model_validate(BY_OPTIMIZER)
    assert space.root["sgd_momentum"].when == {"optimizer": ("sgd",)}
    assert list(space.grid_points()) == [
        {"optimizer": "adamw"},
        {"sgd_momentum": 0.0, "optimizer": "sgd", "lora_r": 1},
        {"sgd_momentum": 0.0, "optimizer": "sgd", "lora_r": 2},
        {"sgd_momentum": 0.0, "optimizer": "sgd", "lora_r": 3},
        {"sgd_momentum": 0.9, "optimizer": "sgd", "lora_r": 1},
        {"sgd_momentum": 0.9, "optimizer": "sgd", "lora_r": 2},
        {"sgd_momentum": 0.9, "optimizer": "sgd", "lora_r": 3},
    ]


def test_the_batch_a_rate_is_meant_for_is_searched_only_where_the_rate_is_scaled() -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate_scaling": {"choices": ["none", "sqrt", "linear"]},
            "learning_rate_batch_size": {"choices": [8, 32]},
        }
    )
    assert space.grid_size() == 1 + 2 * 2


def test_conditions_may_be_chained_and_name_whole_numbers_lists_and_booleans() -> None:
    space = SearchSpace.model_validate(
        {
            "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
            "lora_r": {"min": 1, "max": 3, "when": {"target_modules": [["q_proj", "v_proj"]]}},
            "use_rslora": {"choices": [False, True], "when": {"lora_r": [2, 3.0]}},
            "lora_dropout": {"choices": [0.0, 0.1], "when": {"use_rslora": True}},
        }
    )
    assert space.root["lora_r"].when == {"target_modules": (("q_proj", "v_proj"),)}
    assert space.root["use_rslora"].when == {"lora_r": (2, 3)}
    assert space.active({"target_modules": '["q_proj", "v_proj"]', "lora_r": 2, "use_rslora": True}) == (
        "target_modules",
        "lora_r",
        "use_rslora",
        "lora_dropout",
    )
    # A condition on an inactive parameter does not hold, whatever its value would have been.
    assert space.active({"target_modules": "attention", "lora_r": 2, "use_rslora": True}) == (
        "target_modules",
    )
    assert space.grid_size() == 1 + 1 + 2 * (1 + 2)


def test_a_large_conditional_grid_is_counted_without_being_made() -> None:
    space = SearchSpace.model_validate(
        {
            "batch_size": {"min": 1, "max": 100_000},
            "lora_r": {"min": 1, "max": 100_000, "when": {"batch_size": [1, 2]}},
            "max_length": {"min": 8, "max": 100_007, "when": {"lora_r": 5}},
        }
    )
    expected = (100_000 - 2) + 2 * ((100_000 - 1) + 100_000)
    assert space.grid_size() == expected
    assert space.grid_point(0) == {"batch_size": 1, "lora_r": 1}
    assert list(itertools.islice(space.grid_points(), 4, 6)) == [
        {"batch_size": 1, "lora_r": 5, "max_length": 8},
        {"batch_size": 1, "lora_r": 5, "max_length": 9},
    ]
    assert space.grid_point(4) == {"batch_size": 1, "lora_r": 5, "max_length": 8}


def test_conditions_that_cannot_be_counted_are_refused_before_they_take_long() -> None:
    luck = random.Random(0)
    rates, ranks = [i / 1000 for i in range(1, 201)], list(range(1, 201))
    values: dict[str, Any] = {
        **dict.fromkeys(("batch_size", "epochs", "weight_decay", "max_grad_norm", "lora_alpha"), 1),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "sgd_momentum", "rmsprop_alpha", "lora_dropout"), 0.5),
        **dict.fromkeys(("adam_epsilon", "learning_rate_batch_size", "max_length", "warmup_ratio"), 1),
        "max_length": 8,
    }
    space: dict[str, Any] = {"learning_rate": {"choices": rates}, "lora_r": {"choices": ranks}}
    for name, value in values.items():
        when = {"learning_rate": luck.sample(rates, 140), "lora_r": luck.sample(ranks, 140)}
        space[name] = {"choices": [value], "when": when}
    assert "too many combinations to count" in faults(space)[""]


def test_counting_gives_up_on_conditions_that_are_all_open_at_once() -> None:
    gate = 20
    dimensions = (
        *(Dimension(2) for _ in range(gate)),
        Dimension(2),
        *(Dimension(3, ((i, frozenset({1})), (gate, frozenset({1})))) for i in range(gate)),
    )
    with pytest.raises(TooManyConditionsError):
        count(dimensions)
    # The same conditions without the gate are settled one by one: each parent and child have 1 + 3 states.
    apart = (
        *(Dimension(2) for _ in range(gate)),
        *(Dimension(3, ((i, frozenset({1})),)) for i in range(gate)),
    )
    assert count(apart) == 4**gate


@pytest.mark.parametrize(
    ("space", "path", "words"),
    [
        ({"lora_r": {"choices": [1, 2], "when": {"lora_r": 1}}}, "lora_r.when.lora_r", "on itself"),
        (
            {
                "lora_r": {"choices": [1, 2], "when": {"batch_size": 1}},
                "batch_size": {"choices": [1], "when": {"epochs": 1}},
                "epochs": {"choices": [1], "when": {"lora_r": 1}},
            },
            "lora_r.when",
            "lora_r -> batch_size -> epochs -> lora_r",
        ),
        (
            {"lora_r": {"choices": [1, 2], "when": {"optimizer": "sgd"}}},
            "lora_r.when.optimizer",
            "is not searched",
        ),
        (
            {
                "lora_r": {"choices": [1, 2], "when": {"optimizer": ["sgd", "adam"]}},
                "optimizer": {"choices": ["adamw", "sgd"]},
            },
            "lora_r.when.optimizer",
            "lists values that optimizer never has: adam",
        ),
        (
            {
                "lora_r": {"choices": [1, 2], "when": {"batch_size": 9}},
                "batch_size": {"min": 2, "max": 8, "step": 2},
            },
            "lora_r.when.batch_size",
            "never has: 9",
        ),
        (
            {
                "lora_r": {"choices": [1, 2], "when": {"learning_rate": 1e-4}},
                "learning_rate": {"min": 1e-5, "max": 1e-3},
            },
            "lora_r.when.learning_rate",
            "range of real numbers",
        ),
        (
            {"lora_r": {"choices": [1], "when": {"batch_size": []}}, "batch_size": {"choices": [1]}},
            "lora_r.when.batch_size",
            "can never hold",
        ),
        ({"lora_r": {"choices": [1], "when": "optimizer"}}, "lora_r.when", "must be a mapping"),
        (
            {"lora_r": {"choices": [1], "when": {"batch_size": {"min": 1}}}, "batch_size": {"choices": [1]}},
            "lora_r.when.batch_size",
            "must be a value",
        ),
        (
            {
                "lora_r": {"choices": [1, 2], "when": {"optimizer": "adamw", "lr_scheduler": "cosine"}},
                "optimizer": {"choices": ["adamw", "sgd"]},
                "lr_scheduler": {"choices": ["cosine"], "when": {"optimizer": "sgd"}},
            },
            "lora_r.when",
            "two values at once",
        ),
        (
            {"optimizer": {"choices": ["adamw", "rmsprop"]}, "sgd_momentum": {"min": 0, "max": 0.9}},
            "sgd_momentum",
            "is used only if optimizer is sgd",
        ),
        (
            {
                "optimizer": {"choices": ["adamw", "sgd"]},
                "sgd_momentum": {"min": 0, "max": 0.9, "when": {"optimizer": ["adamw", "sgd"]}},
            },
            "sgd_momentum.when.optimizer",
            "sgd_momentum has no effect",
        ),
        (
            {
                "optimizer": {"choices": ["adamw", "sgd"], "when": {"sgd_momentum": 0.9}},
                "sgd_momentum": {"choices": [0.0, 0.9]},
            },
            "optimizer.when",
            "depends on itself in a circle",
        ),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused_at_its_place(
    space: dict[str, Any], path: str, words: str
) -> None:
    found = faults(space)
    assert list(found) == [path]
    assert words in found[path]


def test_a_condition_names_the_nearest_searched_field_and_value() -> None:
    with pytest.raises(ValidationError) as caught:
        SearchSpace.model_validate(
            {
                "lora_r": {"choices": [1], "when": {"optimiser": "sgd"}},
                "batch_size": {"choices": [1], "when": {"optimizer": "adam"}},
                "optimizer": {"choices": ["adamw", "sgd"]},
            }
        )
    nearest = {fault.path: fault.nearest for fault in translate(caught.value)}
    assert nearest == {"lora_r.when.optimiser": "optimizer", "batch_size.when.optimizer": "adamw"}


def test_a_parameter_with_its_own_faults_is_no_reason_to_doubt_a_condition_on_it() -> None:
    space = {
        "lora_r": {"choices": [1], "when": {"batch_size": 4}},
        "batch_size": {"choices": [0, 4]},
    }
    assert list(faults(space)) == ["batch_size.choices.0"]


@pytest.mark.parametrize("name", ["quantization", "max_length"])
def test_what_a_recipe_leaves_to_the_study_is_no_choice(name: str) -> None:
    space = {name: {"choices": [None, "nf4" if name == "quantization" else 64]}}
    assert list(faults(space)) == [f"{name}.choices.0"]


# Points of ranges.


def test_points_lie_evenly_on_the_scale_with_both_ends() -> None:
    log = Float(min=1e-5, max=1e-1, scale="log", points=5)
    assert [log.grid_value(i) for i in range(5)] == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    linear = Float(min=0.1, max=0.4, points=4)
    assert [linear.grid_value(i) for i in range(4)] == [0.1, 0.2, 0.3, 0.4]
    whole = Int(min=1, max=64, scale="log", points=7)
    assert [whole.grid_value(i) for i in range(7)] == [1, 2, 4, 8, 16, 32, 64]
    assert (log.size, log.grid_size, whole.size, whole.grid_size) == (None, 5, 64, 7)


@given(st.floats(1e-7, 1.0), st.floats(1.001, 1e6), st.integers(2, 50), st.booleans())
@few
def test_points_are_what_exact_arithmetic_gives(low: float, ratio: float, points: int, log: bool) -> None:
    high = low * ratio
    parameter = Float(min=low, max=high, scale="log" if log else "linear", points=points)
    values = [parameter.grid_value(i) for i in range(points)]
    assert (values[0], values[-1]) == (low, high)
    assert values == sorted(set(values))
    shares = [i / (points - 1) for i in range(points)]
    expected = [low * ratio**share if log else low + (high - low) * share for share in shares]
    assert values == pytest.approx(expected, rel=1e-12)


def test_whole_points_that_round_to_the_same_number_are_one() -> None:
    parameter = Int(min=1, max=8, scale="log", points=6)
    assert [parameter.grid_value(i) for i in range(parameter.grid_size)] == [1, 2, 3, 5, 8]


def test_only_a_grid_goes_by_points() -> None:
    space = SearchSpace.model_validate({"lora_r": {"min": 1, "max": 64, "scale": "log", "points": 7}})
    assert (space.grid_size(), space.size()) == (7, 64)
    assert space.contains({"lora_r": 3})


@pytest.mark.parametrize(
    ("parameter", "path"),
    [
        ({"min": 0.1, "max": 0.5, "step": 0.1, "points": 3}, "points"),
        ({"min": 0.1, "max": 0.5, "points": 1}, "points"),
        ({"min": 0.1, "max": 0.5, "points": 2.5}, "points"),
        ({"min": 0.1, "max": 0.5, "points": 10_001}, "points"),
        ({"min": 0.1, "max": 0.100000000004, "points": 9}, "points"),
        ({"choices": [0.1], "points": 2}, ""),
    ],
    ids=repr,
)
def test_wrong_points_are_refused(parameter: Any, path: str) -> None:
    assert list(faults({"learning_rate": parameter})) == [f"learning_rate.{path}".rstrip(".")]


def test_there_are_no_more_points_than_whole_numbers() -> None:
    assert list(faults({"lora_r": {"min": 1, "max": 4, "points": 5}})) == ["lora_r.points"]


def test_a_condition_may_name_a_whole_number_that_a_grid_leaves_out() -> None:
    space = SearchSpace.model_validate(
        {
            "lora_r": {"min": 1, "max": 64, "scale": "log", "points": 7},
            "use_rslora": {"choices": [False, True], "when": {"lora_r": [3, 64]}},
            "lr_scheduler": {"choices": ["linear", "cosine"], "when": {"lora_r": 3}},
        }
    )
    assert space.grid_size() == 6 + 2
    assert space.size() == 62 + 2 + 2 * 2


# Narrowing.


def test_a_narrowed_range_keeps_scale_points_and_condition() -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate": {"min": 1e-6, "max": 1, "scale": "log", "points": 4, "when": {"lora_r": 8}},
            "lora_r": {"choices": [4, 8]},
        }
    )
    narrowed = space.narrowed("learning_rate", 1e-4, 1e-1)
    expected = Float(min=1e-4, max=1e-1, scale="log", points=4, when={"lora_r": (8,)})
    assert narrowed.root == {"learning_rate": expected, "lora_r": Choice(choices=(4, 8))}
    assert list(narrowed.root) == ["learning_rate", "lora_r"]


def test_narrowing_stays_on_the_steps() -> None:
    space = SearchSpace.model_validate(
        {"lora_dropout": {"min": 0.1, "max": 0.9, "step": 0.2}, "lora_r": {"min": 1, "max": 9, "step": 4}}
    )
    assert space.narrowed("lora_dropout", 0.2, 0.71).root["lora_dropout"] == Float(min=0.3, max=0.7, step=0.2)
    assert space.narrowed("lora_r", 4.5, 100).root["lora_r"] == Int(min=5, max=97, step=4)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("lora_r", 4, 8), ("learning_rate", -1.0, 1.0), ("learning_rate", 1e-3, 1e-3), ("epochs", 1.2, 1.9)],
)
def test_a_range_that_cannot_be_narrowed_so_is_a_value_error(name: str, low: float, high: float) -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate": {"min": 1e-5, "max": 1e-3},
            "lora_r": {"choices": [4, 8]},
            "epochs": {"min": 1, "max": 3, "type": "int"},
        }
    )
    with pytest.raises(ValueError, match=name):
        space.narrowed(name, low, high)
