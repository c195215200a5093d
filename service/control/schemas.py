"""What was asked of studies, as the REST API shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.answers import Answer, Open

RecipeState = Literal["waiting", "asked", "dropped"]


class RecipeView(Answer):
    """An enqueued recipe."""

    id: int
    state: Open[RecipeState] = Field(
        description="waiting: the next trials have it; asked: a trial has it; dropped: none will"
    )
    params: dict[str, Any] = Field(description="As they were given; the sampler chooses the others")
    asked_by: str = Field(description="Whose API key it was enqueued with")
    at: datetime
    trial_number: int | None
    reason: str | None = Field(description="Why no trial has it, of a dropped one")


class RecipePage(Answer):
    items: list[RecipeView]
