"""Accepting a definition: its paths are resolved, and it is valid or all of its faults are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.parsing.document import parse_definition
from service.definitions.local_files import resolve_paths
from service.errors import Invalid


def check_definition(document: Any, data_roots: Sequence[Path]) -> tuple[StudyDefinition | None, list[Fault]]:
    """The definition with its paths resolved, or everything that is wrong with it."""
    resolved, file_faults = resolve_paths(document, data_roots)
    try:
        definition = parse_definition(resolved)
    except InvalidDefinition as error:
        known = {fault.path for fault in error.faults}
        return None, [*error.faults, *(fault for fault in file_faults if fault.path not in known)]
    return (None, file_faults) if file_faults else (definition, [])


def accept_definition(document: Any, data_roots: Sequence[Path]) -> StudyDefinition:
    """The definition, as it will be stored. Raises `Invalid` with every fault at once."""
    definition, faults = check_definition(document, data_roots)
    if definition is None:
        raise Invalid("The definition", faults)
    return definition
