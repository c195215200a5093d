"""Fixtures that make definitions, and the faults of those that are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.parsing.document import parse_definition
from tests.support.search_spaces.spaces import DOCUMENT


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
