"""schemathesis over the OpenAPI document on both databases; `make fuzz` is the full run."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from search_spaces.errors import InvalidDefinition
from search_spaces.parsing.document import parse_definition
from service.definitions.json_schema import EXAMPLE, REF, definition_schemas
from service.settings import Settings
from tests.soak.fuzz.definitions import sound_definition
from tests.soak.fuzz.run import fuzz
from tests.soak.fuzz.world import living_coordinator, make_world

REACHED = {
    ("POST /v1/studies", 201),
    ("POST /v1/studies", 200),
    ("POST /v1/schedules", 201),
    ("POST /v1/range-tests", 201),
    ("PATCH /v1/schedules/{schedule}", 200),
    ("GET /v1/schedules/{schedule}/studies", 200),
    ("GET /v1/studies/{study}", 200),
    ("GET /v1/studies/{study}/trials/{number}", 200),
    ("GET /v1/studies/{study}/report", 200),
}
"""Answers without which the run has looked at nothing but refusals."""


def test_no_request_breaks_the_server_or_its_own_description_of_itself(settings: Settings) -> None:
    # The document's boundaries take thousands of requests; they are tried by `make fuzz`.
    with living_coordinator(settings):
        outcome = fuzz(make_world(settings), examples=15)
    assert outcome.failures == [], outcome.table()
    assert outcome.cases >= 300, outcome.table()
    assert outcome.sound.total() >= 10
    assert REACHED - set(outcome.statuses) == set(), outcome.table()


@pytest.fixture(scope="module")
def validator() -> Any:
    whole = {**REF, "components": {"schemas": definition_schemas()}}
    return jsonschema.Draft202012Validator(whole)


def test_whatever_is_accepted_is_valid_by_the_published_schema(validator: Any) -> None:
    for number in range(200):
        document = sound_definition(number)
        accepted = parse_definition(document).model_dump(mode="json")
        for form in (document, accepted):
            assert [error.message for error in validator.iter_errors(form)] == []


def test_the_published_example_is_accepted(validator: Any) -> None:
    assert parse_definition(dict(EXAMPLE)).name == "support-tone"
    assert list(validator.iter_errors(dict(EXAMPLE))) == []


@pytest.mark.parametrize(
    "change",
    [
        {"nme": "x"},
        {"name": "a b"},
        {"model": {}},
        {"model": {"id": "a/b", "quantization": "nf5"}},
        {"data": {"train": ["a"], "eval": "b"}},
        {"search": {"trials": 0, "space": {}}},
        {"search": {"trials": 1, "space": {"learning": {}}}},
        {"recipe": {"lora_r": 0}},
        {"pruning": {"algorithm": "ashaa"}},
        {"budget": {"max_gpu_hours": 0}},
        {"constraints": {"loss": {}}},
        {"task": "seq2seq"},
        {"data": {"train": "a", "eval": "b", "header": "none", "columns": {"text": -1}}},
        {"recipe": {"loss": "hinge loss"}},
        {"losses": {"hinge loss": "m:f"}},
        {"recipe": {"class_weights": {"yes": 0}}},
        {"metrics": {"net profit": "m:f"}},
        {"metrics": {"profit": "profit"}},
        {"evaluation": {"generate": {"max_new_tokens": 0}}},
    ],
)
def test_what_the_schema_refuses_is_refused(validator: Any, change: dict[str, Any]) -> None:
    document = {**EXAMPLE, **change}
    assert list(validator.iter_errors(document))
    with pytest.raises(InvalidDefinition):
        parse_definition(document)
