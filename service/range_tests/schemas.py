"""Range tests as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service.answers import Answer, Open
from service.states import TERMINAL_STUDY_STATES, StudyState


class CurvePointView(Answer):
    learning_rate: float
    loss: float = Field(
        description="The task's plain train loss before the step: of a language model in nats per supervised"
        " token"
    )
    smoothed: float


class CornerView(Answer):
    """One sweep."""

    trial_number: int
    values: dict[str, Any] = Field(description="The corner's recipe fields: batch_size, lora_r")
    curve: list[CurvePointView] = Field(description="Empty until the corner has been swept")
    steepest: float | None = Field(description="Learning rate at which the loss falls fastest")
    minimum: float | None = Field(description="Learning rate of the lowest smoothed loss")
    divergence: float | None = Field(description="Learning rate at which the loss diverged; null: it did not")
    note: str


class BoundsView(Answer):
    min: float
    max: float


class ListedRangeTest(Answer):
    """A range test in a list. What it found is at its own address."""

    id: str
    name: str
    state: Open[StudyState]
    reason: str = Field(description="Why it is in this state, in words")
    owner: str = Field(description="The owner of the API key that submitted it or its study")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    study: str | None = Field(
        description="The study of which it is the first stage; null: it was submitted alone"
    )
    dashboard_path: str | None = Field(description="null until its first sweep exists")

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STUDY_STATES


class RangeTestView(ListedRangeTest):
    definition: dict[str, Any] = Field(
        description="The definition of the sweeps, with one trial for each corner"
    )
    corners: list[CornerView]
    allowed: BoundsView | None = Field(
        description="Bounds of the learning rate in the definition's space; null: the rate is fixed"
    )
    proposed: BoundsView | None = Field(
        description="Bounds proposed from the corners; null: none yet, or it was inconclusive, cancelled or"
        " failed"
    )
    bounds: BoundsView | None = Field(
        description="`proposed`, limited to `allowed` unless `widen` is set; null: none, or not yet"
    )
    notes: list[str]


class RangeTestPage(Answer):
    items: list[ListedRangeTest]
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page"
    )
