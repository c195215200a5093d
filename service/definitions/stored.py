"""The documents in a study's row: its definition, and what was decided before its first trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from service.db.models import Schedule, Study


def read_definition(row: Study | Schedule) -> StudyDefinition | None:
    """The definition of a study or schedule; None if this version cannot read what another one stored.

    Such a study is still listed and shown: one of them must not hide all the others.
    """
    try:
        return StudyDefinition.model_validate(row.definition)
    except ValidationError:
        return None


def shown_params(definition: StudyDefinition | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as people wrote them, where the definition says how Optuna holds them."""
    return dict(params) if definition is None else definition.search.space.decode(params)


def read_preparation(study: Study) -> Preparation:
    """What was decided for a study before its first trial."""
    return NOTHING if study.preparation is None else Preparation.model_validate(study.preparation)
