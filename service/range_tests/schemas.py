"""Range tests as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from service.states import StudyState


class CurvePointView(BaseModel):
    learning_rate: float
    loss: float = Field(description="Train loss before the step, in nats per supervised token")
    smoothed: float


class CornerView(BaseModel):
    """One sweep."""

    trial_number: int
    values: dict[str, Any] = Field(description="The corner's recipe fields: batch_size, lora_r")
    curve: list[CurvePointView] = Field(description="Empty until it has been swept")
    steepest: float | None = Field(description="Learning rate at which the loss falls fastest")
    minimum: float | None = Field(description="Learning rate of the lowest smoothed loss")
    divergence: float | None = Field(description="Learning rate at which it diverged; null: it did not")
    note: str


class BoundsView(BaseModel):
    min: float
    max: float


class RangeTestView(BaseModel):
    id: str
    name: str
    state: StudyState
    reason: str = Field(description="Why it is in this state, in words")
    owner: str = Field(description="Whose API key submitted it, or the study whose first stage it is")
    definition: dict[str, Any] = Field(description="Of the sweeps: one trial for each corner")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    study: str | None = Field(description="The name of the study whose first stage it is")
    corners: list[CornerView]
    allowed: BoundsView | None = Field(
        description="Learning rates that the definition's space holds; null: it fixes the rate"
    )
    proposed: BoundsView | None = Field(
        description="What the corners say; null: nothing (yet), or it was cancelled or failed"
    )
    bounds: BoundsView | None = Field(
        description="`proposed` within `allowed`, unless it may widen it; null: nothing (yet)"
    )
    notes: list[str]
    dashboard_path: str | None = Field(description="None until its first sweep is asked for")


class RangeTestPage(BaseModel):
    items: list[RangeTestView]
    next_cursor: str | None = Field(description="Pass it as `cursor` to go on; null at the end")
