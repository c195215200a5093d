"""A valid document to bend, and a strategy for valid search spaces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.definition import StudyDefinition, parse_definition
from search_spaces.errors import Fault, InvalidDefinition

DOCUMENT: dict[str, Any] = {
    "name": "tone",
    "model": {"id": "org/base"},
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "search": {
        "algorithm": "tpe",
        "trials": 12,
        "seed": 7,
        "space": {
            "learning_rate": {"min": 1.0e-5, "max": 1.0e-3, "scale": "log"},
            "lora_r": {"choices": [4, 8, 16]},
        },
    },
}


@pytest.fixture
def document() -> dict[str, Any]:
    """The smallest valid document, free to be changed."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def faults_of() -> Callable[[Any], dict[str, Fault]]:
    """Parses a document that must be refused, and gives its faults by path."""

    def parse(document: Any) -> dict[str, Fault]:
        with pytest.raises(InvalidDefinition) as caught:
            parse_definition(document)
        paths = [fault.path for fault in caught.value.faults]
        assert sorted(set(paths)) == sorted(paths), "one fault per place"
        return {fault.path: fault for fault in caught.value.faults}

    return parse


@pytest.fixture
def define() -> Callable[..., StudyDefinition]:
    """A definition with another `search` section."""

    def parse(**search: Any) -> StudyDefinition:
        document = copy.deepcopy(DOCUMENT)
        document["search"] |= search
        return parse_definition(document)

    return parse
