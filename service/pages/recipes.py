"""The best recipe, ready to be copied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def recipe_yaml(definition: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """What a trial was trained with, as the `recipe` of a definition: what is not in it has its default.

    Args:
        definition: the study's, as it was accepted.
        params: what the search chose, with all digits.
    """
    fixed = definition.get("recipe") or {}
    return yaml.safe_dump({"recipe": _plain({**fixed, **params})}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """Without tuples, which YAML would mark as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
