"""The answers about presets, which the REST API calls search spaces."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.answers import Answer


class SearchSpaceView(Answer):
    name: str
    description: str
    parameters: dict[str, Any] = Field(description="As in a definition's search.space")
    recipe: dict[str, Any] = Field(description="What it fixes, unless the definition's recipe does")
    sources: dict[str, str] = Field(description="Recipe field to where its range or value comes from")


class SearchSpaceList(Answer):
    items: list[SearchSpaceView]
