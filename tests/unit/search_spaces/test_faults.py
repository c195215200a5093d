"""Which name was meant, and how often the allowed ones are listed."""

from __future__ import annotations

import pytest

from search_spaces.definition import ALGORITHMS, MEASURES, StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, unknown_keys
from search_spaces.pruning.specs import PRUNING_SPECS
from search_spaces.recipe import RECIPE_FIELDS, SYNONYMS
from search_spaces.space.presets import preset_names

SECTIONS = tuple(StudyDefinition.model_fields)
QUANTIZATIONS = ("nf4", "fp4", "int8", "none")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("tpo", ALGORITHMS, "tpe"),
        ("randm", ALGORITHMS, "random"),
        ("cma-es", ALGORITHMS, "cmaes"),
        ("CMAES", ALGORITHMS, "cmaes"),
        ("medain", tuple(PRUNING_SPECS), "median"),
        ("percentil", tuple(PRUNING_SPECS), "percentile"),
        ("learning-rate", RECIPE_FIELDS, "learning_rate"),
        ("lora_droput", RECIPE_FIELDS, "lora_dropout"),
        ("weight_deacy", RECIPE_FIELDS, "weight_decay"),
        ("optimiser", RECIPE_FIELDS, "optimizer"),
        ("quant", RECIPE_FIELDS, "quantization"),
        ("length", RECIPE_FIELDS, "max_length"),
        ("serach", SECTIONS, "search"),
        ("dataset", SECTIONS, "data"),
        ("eval_los", MEASURES, "eval_loss"),
        ("loss", MEASURES, "eval_loss"),
        ("peak_memory", MEASURES, "peak_memory_gb"),
        ("default", preset_names(), "qlora-default"),
        ("Berlin", ("Europe/Berlin", "Europe/Bern"), "Europe/Berlin"),
        ("trian.jsonl", ("train.jsonl", "eval.jsonl"), "train.jsonl"),
    ],
)
def test_a_typing_error_or_a_part_of_a_name_names_it(word: str, known: tuple[str, ...], meant: str) -> None:
    assert nearest_name(word, known) == meant


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("bayes", ALGORITHMS),
        ("bayesian", ALGORITHMS),
        ("sobol", ALGORITHMS),
        ("evolution", ALGORITHMS),
        ("mean", tuple(PRUNING_SPECS)),
        ("medium", tuple(PRUNING_SPECS)),
        ("halving", tuple(PRUNING_SPECS)),
        ("lora", RECIPE_FIELDS),
        ("lora_beta", RECIPE_FIELDS),
        ("packing", RECIPE_FIELDS),
        ("bits", RECIPE_FIELDS),
        ("time", MEASURES),
        ("int4", QUANTIZATIONS),
        ("fp8", QUANTIZATIONS),
        ("4bit", QUANTIZATIONS),
        ("adam_beta3", RECIPE_FIELDS),
        ("train2.jsonl", ("train.jsonl", "eval.jsonl")),
        ("PST", ("MST", "EST", "UTC")),
        ("UTC+2", ("UTC", "Etc/GMT-2", "Etc/GMT+2")),
        ("", RECIPE_FIELDS),
        ("-", RECIPE_FIELDS),
        ("é" * 150, RECIPE_FIELDS),
    ],
)
def test_what_only_resembles_a_name_gets_no_hint(word: str, known: tuple[str, ...]) -> None:
    assert nearest_name(word, known) is None


def test_the_known_keys_are_listed_once_for_all_that_are_unknown() -> None:
    raw = {"lora_droput": 1, "packing": 1, "bf16": 1, "wd": 1, "fp16": 1}
    found = unknown_keys(raw, RECIPE_FIELDS, "recipe", SYNONYMS)
    assert [(fault.path, fault.allowed, fault.nearest) for fault in found] == [
        ("recipe.lora_droput", None, "lora_dropout"),
        ("recipe.packing", ", ".join(RECIPE_FIELDS), None),
        ("recipe.bf16", "the same as for packing", None),
        ("recipe.wd", None, "weight_decay"),
        ("recipe.fp16", "the same as for packing", None),
    ]


def test_where_every_unknown_key_has_a_near_one_the_first_still_lists_the_known_ones() -> None:
    found = unknown_keys(
        {"mn": 1, "mx": 2}, ("minimum", "maximum"), "range", {"mn": "minimum", "mx": "maximum"}
    )
    assert [fault.allowed for fault in found] == ["minimum, maximum", None]


def test_a_sentence_leaves_a_long_list_out_where_the_name_that_was_meant_is_known() -> None:
    near, far = unknown_keys({"lora_droput": 1, "packing": 1}, RECIPE_FIELDS, "recipe")
    alone = unknown_keys({"lora_droput": 1}, RECIPE_FIELDS, "recipe")[0]
    assert str(near).endswith("; did you mean 'lora_dropout'?")
    assert "allowed" not in str(alone)
    assert str(far).count("learning_rate_batch_size") == 1


@pytest.mark.parametrize(
    ("message", "allowed", "sentence"),
    [
        ("must be a number", "a number", "here: must be a number"),
        ("must be 1 with this optimizer", "1", "here: must be 1 with this optimizer"),
        ("must be a number, not text", "a number", "here: must be a number, not text"),
        ("must be 1.5 or more", "1", "here: must be 1.5 or more; allowed: 1"),
        ("sgd_momentum has no effect", "sgd", "here: sgd_momentum has no effect; allowed: sgd"),
        ("must be 10 or more", "1", "here: must be 10 or more; allowed: 1"),
        ("is required", None, "here: is required"),
    ],
)
def test_what_is_allowed_is_left_out_only_where_the_message_is_no_more_than_that(
    message: str, allowed: str | None, sentence: str
) -> None:
    assert str(Fault(path="here", value=0, message=message, allowed=allowed)) == sentence
