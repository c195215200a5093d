"""What a study's row holds as documents: its definition, and what was decided before its first trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from service.db.models import Study

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""What a reference by id or name can look like; nothing else is looked up."""


def read_definition(study: Study) -> StudyDefinition | None:
    """The study's definition; None when this version cannot read what an older or newer one stored.

    Such a study is still listed and shown: one of them must not hide all the others.
    """
    try:
        return StudyDefinition.model_validate(study.definition)
    except ValidationError:
        return None


def shown_params(definition: StudyDefinition | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as people wrote them, where the definition says how Optuna holds them."""
    return dict(params) if definition is None else definition.search.space.decode(params)


def read_preparation(study: Study) -> Preparation:
    """What was decided for a study before its first trial."""
    return NOTHING if study.preparation is None else Preparation.model_validate(study.preparation)
