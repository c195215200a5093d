"""The documents in a study's row: its definition, and what was decided before its first trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from service.db.models import Schedule, Study

EXTENSIBLE = ("trials", "timeout", "max_gpu_hours", "max_failed_trials")
"""What can be extended: `search.trials`, and keys of `budget`."""


def effective_document(definition: Mapping[str, Any], extensions: Sequence[Any] | None) -> dict[str, Any]:
    """A study's definition with what it was given beyond it: the one that holds.

    Args:
        definition: as it was accepted, and as it stays.
        extensions: of `Study.extensions`. Each has the new values of what it extends, under `EXTENSIBLE`
            names, beside `at`, `asked_by` and `since` (`extended_since`).
    """
    document = dict(definition)
    for extension in extensions or ():
        for name in EXTENSIBLE:
            if name in extension:
                section = "search" if name == "trials" else "budget"
                document[section] = {**(document.get(section) or {}), name: extension[name]}
    return document


def extended_since(extensions: Sequence[Any] | None) -> int:
    """The number of the first trial after the study was last extended when it had ended; 0: it never was.

    All trials before had ended by then, and what ends a study looks at those after it alone.
    """
    return max((extension.get("since") or 0 for extension in extensions or ()), default=0)


def require_definition(study: Study) -> StudyDefinition:
    """The definition of a study that holds. Raises `pydantic.ValidationError`."""
    return StudyDefinition.model_validate(effective_document(study.definition, study.extensions))


def read_definition(row: Study | Schedule) -> StudyDefinition | None:
    """The definition of a study or schedule; None if this version cannot read what another one stored.

    Such a study is still listed and shown: one of them must not hide all the others.
    """
    try:
        if isinstance(row, Study):
            return require_definition(row)
        return StudyDefinition.model_validate(row.definition)
    except ValidationError:
        return None


def shown_params(definition: StudyDefinition | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as people wrote them, where the definition says how Optuna holds them."""
    return dict(params) if definition is None else definition.search.space.decode(params)


def read_preparation(study: Study) -> Preparation:
    """What was decided for a study before its first trial."""
    return NOTHING if study.preparation is None else Preparation.model_validate(study.preparation)
