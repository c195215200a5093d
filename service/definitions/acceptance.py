"""Accepting a definition: its paths are resolved, and it is valid or all of its faults are named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.parsing.document import parse_definition
from service.definitions.local_files import resolve_paths
from service.errors import Invalid


def check_definition(
    document: Any,
    data_roots: Sequence[Path],
    plugins: Collection[str] | None,
    may_be_absent: Collection[str] = (),
) -> tuple[StudyDefinition | None, list[Fault]]:
    """The definition with its paths resolved, or everything that is wrong with it.

    Args:
        document: what was sent.
        data_roots: folders that its paths may lead to.
        plugins: modules that its metrics and losses may be from; None: not known here.
        may_be_absent: `data.train`, `data.eval`, where the file need not be there yet.
    """
    resolved, file_faults = resolve_paths(document, data_roots, may_be_absent)
    try:
        definition = parse_definition(resolved)
    except InvalidDefinition as error:
        known = {fault.path for fault in error.faults}
        return None, [*error.faults, *(fault for fault in file_faults if fault.path not in known)]
    faults = [*file_faults, *_plugin_faults(definition, plugins)]
    return (None, faults) if faults else (definition, [])


def accept_definition(
    document: Any, data_roots: Sequence[Path], plugins: Collection[str] | None
) -> StudyDefinition:
    """The definition, as it will be stored. Raises `Invalid` with every fault at once."""
    definition, faults = check_definition(document, data_roots, plugins)
    if definition is None:
        raise Invalid("The definition", faults)
    return definition


def _plugin_faults(definition: StudyDefinition, plugins: Collection[str] | None) -> Iterator[Fault]:
    own = [(f"metrics.{name}", function) for name, function in definition.metrics.items()]
    own += [(f"losses.{name}", function) for name, function in definition.losses.items()]
    for path, function in own:
        if plugins is not None and function.partition(":")[0] not in plugins:
            message = (
                "is from a module that NIGHTSWEEP_PLUGINS does not name; whoever runs the service can add it"
            )
            yield Fault(
                path=path,
                value=function,
                message=message,
                allowed=f"a function of {', '.join(plugins)}" if plugins else None,
            )
