"""Trials as the REST API shows them: Optuna's values and the service's attempts, side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.diagnosis import Verdict
from service.states import AttemptState


class RungView(BaseModel):
    rung: int = Field(description="Training examples")
    value: float | None = Field(description="The objective; null where it was not finite")
    examples_seen: int | None = Field(description="The rung, rounded up to a whole optimizer step")
    metrics: dict[str, float | None] = Field(description="All metrics of the evaluation")
    train_loss: float | None = Field(
        description="Nats per supervised token, over the examples since the rung before"
    )
    train_seconds: float | None = Field(description="Training time up to here, evaluation excluded")
    gradient_noise_scale: float | None = Field(description="In examples, measured from the beginning to here")


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


class FindingView(BaseModel):
    verdict: Verdict
    evidence: str = Field(description="The numbers it rests on")
    rung: int | None = Field(description="Where it begins, in training examples, for what begins somewhere")


class TrialView(BaseModel):
    number: int
    state: AttemptState | Literal["waiting"] = Field(description="The latest attempt's; waiting without any")
    reason: str
    params: dict[str, Any] = Field(description="What the search chose; inactive conditional ones are absent")
    recipe: dict[str, Any] | None = Field(
        description="Every hyperparameter with the value that is trained with, fixed and default ones too;"
        " null while the sampler is choosing"
    )
    repeat_of: int | None = Field(
        description="The trial whose recipe it runs again with another seed; null: it is of the search"
    )
    seed: int | None = Field(description="Of a repeat")
    value: float | None = Field(description="The objective at the best rung, of a completed trial")
    costs: dict[str, float] = Field(description="Those that the objective names, of a completed trial")
    feasible: bool = Field(description="False for a completed trial that broke a constraint")
    best_rung: int | None
    rungs: list[RungView]
    metrics: dict[str, float | None] = Field(description="At the best rung")
    final_metrics: dict[str, float | None] = Field(description="At the last rung")
    diagnosis: list[FindingView] = Field(
        description="What its curves say; empty where nothing stands out, and until it has ended"
    )
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
    trainable_parameters: int | None = Field(description="Numbers in the adapter")
    gradient_noise_scale: float | None = Field(
        description="In examples: McCandlish et al. 2018, arXiv 1812.06162; null where it was not measured"
    )
    critical_batch_size: int | None = Field(
        description="The noise scale as a batch size: larger batches need hardly fewer steps"
    )
    started_at: datetime | None = Field(description="Of the first attempt")
    ended_at: datetime | None = Field(description="Of the latest attempt")
    adapter: AdapterView | None
    attempts: list[AttemptView]


class TrialPage(BaseModel):
    items: list[TrialView]


class RunView(BaseModel):
    trial_number: int
    seed: int | None
    state: AttemptState | Literal["waiting"]
    value: float | None = Field(description="The objective; null unless it completed")


class CandidateView(BaseModel):
    trial_number: int
    value: float = Field(
        description="What the search chose it by. Chosen for its luck as well, so it is not in the mean"
    )
    runs: list[RunView] = Field(description="With fresh seeds")
    n: int = Field(description="How many of them completed")
    mean: float | None = Field(description="Over the fresh seeds; null without one")
    standard_deviation: float | None = Field(description="Of the sample; null with fewer than two")


class JudgementView(BaseModel):
    """Is the winner real?"""

    winner: int = Field(description="Trial number")
    decided_by: Literal["search", "repeats"] = Field(
        description="repeats: the best mean over fresh seeds; search: the best single value"
    )
    candidates: list[CandidateView] = Field(description="The best first")
    p_value: float | None = Field(description="Of Welch's two-sided t-test between the first two")
    distinguishable: bool | None = Field(description="p below 0.05; null where there is nothing to test")
    sentence: str


class ParetoPoint(BaseModel):
    trial_number: int
    value: float = Field(description="The objective")
    costs: dict[str, float]
    params: dict[str, Any]


class ParetoFront(BaseModel):
    objectives: list[str] = Field(description="The metric, then the costs, which are minimized")
    items: list[ParetoPoint] = Field(
        description="Trials that no other one beats in everything, the best objective first"
    )


class BestView(TrialView):
    judgement: JudgementView | None = Field(
        description="How sure it is; null when this version cannot read the stored definition"
    )
    pareto_front: list[ParetoPoint] | None = Field(description="With several objectives")
