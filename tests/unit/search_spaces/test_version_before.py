"""Definitions that the version before has accepted and stored mean what they meant."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.definition import StudyDefinition, parse_definition
from tests.support.version_before import read_json

DEFINITIONS: list[dict[str, Any]] = read_json("definitions.json")


@pytest.mark.parametrize("number", range(len(DEFINITIONS)))
def test_a_definition_means_what_it_meant_to_the_version_before(number: int) -> None:
    """Submitted now, read from the database, and submitted as it was stored."""
    submitted, stored = (DEFINITIONS[number][key] for key in ("submitted", "stored"))
    assert parse_definition(submitted).model_dump(mode="json") == stored
    assert StudyDefinition.model_validate(stored).model_dump(mode="json") == stored
    assert parse_definition(stored) == parse_definition(submitted)
