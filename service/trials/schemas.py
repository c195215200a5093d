"""Trials as the REST API shows them: Optuna's values and the service's attempts, side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.states import AttemptState


class RungView(BaseModel):
    rung: int = Field(description="Training examples")
    value: float | None = Field(description="The objective; null where it was not finite")


class ProgressView(BaseModel):
    examples_seen: int
    total_examples: int | None
    step: int = Field(description="Optimizer steps")
    train_loss: float | None = Field(description="Nats per supervised token, over the last batch")


class AdapterView(BaseModel):
    path: str = Field(description="The folder on the worker's file system")
    url: str = Field(description="Where to fetch it from, as a zip of PEFT files")


class AttemptView(BaseModel):
    id: int
    ordinal: int
    state: AttemptState
    reason: str
    worker_id: str
    device: str | None
    dispatched_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class TrialView(BaseModel):
    number: int
    state: AttemptState | Literal["waiting"] = Field(description="The latest attempt's; waiting without any")
    reason: str
    params: dict[str, Any] = Field(description="What the search chose")
    recipe: dict[str, Any] | None = Field(
        description="Every hyperparameter; null while the sampler is choosing"
    )
    value: float | None = Field(description="The objective at the best rung, of a completed trial")
    best_rung: int | None
    rungs: list[RungView]
    metrics: dict[str, float | None] = Field(description="At the best rung")
    final_metrics: dict[str, float | None] = Field(description="At the last rung")
    progress: ProgressView | None
    train_seconds: float | None
    peak_memory_bytes: int | None = Field(
        description="Measured: on the device, or of the whole worker on a CPU, pack-mates included"
    )
    predicted_memory_bytes: int | None = Field(
        description="What the cost model said of the whole pack when the trial was admitted"
    )
    useful_token_share: float | None = Field(
        description="Share of the positions in the trial's passes that held a token, not padding"
    )
    started_at: datetime | None = Field(description="Of the first attempt")
    ended_at: datetime | None = Field(description="Of the latest attempt")
    adapter: AdapterView | None
    attempts: list[AttemptView]


class TrialPage(BaseModel):
    items: list[TrialView]
