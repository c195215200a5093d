"""Trials as the REST API shows them: Optuna's values and the service's attempts, side by side."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, create_model

from service.analysis.diagnosis import Verdict
from service.answers import Answer, Open
from service.states import LIVE_ATTEMPT_STATES, UNFINISHED_ATTEMPT_STATES, AttemptState
from service.studies.schemas import ParetoPoint

WAITING = "waiting"
"""The state of a trial that has no attempt yet."""
_UNFINISHED_STATES = frozenset({WAITING, *UNFINISHED_ATTEMPT_STATES, *LIVE_ATTEMPT_STATES})


class RungView(Answer):
    rung: int = Field(description="Training examples")
    value: float | None = Field(
        description="The objective; null if it was not finite, or not measured at this rung, as generated"
        " metrics are at the end alone unless `evaluation.generate.when` is rungs"
    )
    examples_seen: int | None = Field(description="The rung's examples, rounded up to a whole optimizer step")
    metrics: dict[str, float | None] = Field(description="All metrics of the evaluation")
    train_loss: float | None = Field(
        description="The task's plain loss over the examples since the previous rung: of a language model in"
        " nats per supervised token, of a regression the mean squared error"
    )
    train_seconds: float | None = Field(description="Training time up to this rung, without evaluation")
    gradient_noise_scale: float | None = Field(
        description="In examples, measured from the start to this rung"
    )


class ProgressView(Answer):
    examples_seen: int
    total_examples: int | None
    step: int = Field(description="Optimizer steps")
    train_loss: float | None = Field(description="The task's plain loss over the last batch")


class AdapterView(Answer):
    path: str = Field(description="The folder on the worker's file system")
    url: str = Field(description="Where to download it as a zip of PEFT files")


class AttemptView(Answer):
    id: int = Field(description="Higher than that of every attempt that was sent out before it")
    ordinal: int
    state: Open[AttemptState]
    reason: str
    worker_id: str
    device: str | None
    dispatched_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class StudyAttemptView(AttemptView):
    trial_number: int


class AttemptPage(Answer):
    items: list[StudyAttemptView]
    next_cursor: int | None = Field(description="Pass it as `cursor` to go on; null at the end")


class FindingView(Answer):
    verdict: Open[Verdict]
    evidence: str = Field(description="The numbers on which the verdict is based")
    rung: int | None = Field(description="Training examples at which it begins, if it begins at some point")


class EvaluatesView(Answer):
    """Whose adapter a trial evaluates that trains nothing."""

    role: Open[Literal["champion", "challenger"]] = Field(
        description="`champion`: of its schedule; `challenger`: this study's own winner"
    )
    study: str = Field(description="The name of the study whose trial made the adapter")
    trial: int


class TrialView(Answer):
    number: int
    state: Open[AttemptState | Literal["waiting"]] = Field(
        description="The state of the latest attempt; waiting if there is no attempt"
    )
    reason: str
    params: dict[str, Any] = Field(
        description="Parameters that the search chose, without inactive conditional ones"
    )
    recipe: dict[str, Any] | None = Field(
        description="Every hyperparameter with the value that is trained with, fixed and default ones too;"
        " null while the sampler is choosing"
    )
    repeat_of: int | None = Field(
        description="The trial whose recipe it runs again with another seed; null: it belongs to the search"
    )
    seed: int | None = Field(description="The seed of a repeat")
    evaluates: EvaluatesView | None = Field(
        default=None,
        description="The adapter that it evaluates, if it trains nothing; null: it belongs to the search or"
        " is a repeat",
    )
    value: float | None = Field(description="The objective at the best rung, of a completed trial")
    costs: dict[str, float] = Field(description="The costs that the objective names, of a completed trial")
    feasible: bool = Field(description="False for a completed trial that broke a constraint")
    best_rung: int | None
    rungs: list[RungView]
    metrics: dict[str, float | None] = Field(description="Metrics at the best rung")
    final_metrics: dict[str, float | None] = Field(description="Metrics at the last rung")
    diagnosis: list[FindingView] = Field(
        description="Verdicts on its curves; empty if nothing is unusual or the trial has not ended"
    )
    progress: ProgressView | None
    train_seconds: float | None
    peak_memory_bytes: int | None = Field(
        description="Measured on the device; on a CPU for the whole worker, including other trials of the"
        " pack"
    )
    predicted_memory_bytes: int | None = Field(
        description="The cost model's prediction for the whole pack, once some passes had been measured"
    )
    useful_token_share: float | None = Field(
        description="Share of the positions in the trial's passes that held a token, not padding"
    )
    trainable_parameters: int | None = Field(
        description="Parameters of the adapter and of the new head, if the task has one"
    )
    gradient_noise_scale: float | None = Field(
        description="In examples: McCandlish et al. 2018, arXiv 1812.06162; null if it was not measured"
    )
    critical_batch_size: int | None = Field(
        description="The noise scale as a batch size, above which larger batches save hardly any steps"
    )
    started_at: datetime | None = Field(description="Start of the first attempt")
    ended_at: datetime | None = Field(description="End of the latest attempt")
    adapter: AdapterView | None
    stop_requested: bool = Field(
        default=False, description="Whether somebody has asked for its end, `POST .../trials/{number}/stop`"
    )
    attempts: list[AttemptView]

    @property
    def searched(self) -> bool:
        """Whether it is of the search: neither a repeat nor an evaluation."""
        return self.repeat_of is None and self.evaluates is None

    @property
    def finished(self) -> bool:
        """Whether it has ended. A lost or paused attempt is followed by another, so it is not the end."""
        return self.state not in _UNFINISHED_STATES

    @property
    def examples_seen(self) -> int:
        """Training examples, as far as is known."""
        seen = self.progress.examples_seen if self.progress else 0
        return max(seen, self.rungs[-1].rung if self.rungs else 0)


class TrialPage(Answer):
    items: list[TrialView]
    next_cursor: int | None = Field(description="Pass it as `cursor` to go on; null at the end")


_FIELDS: dict[str, Any] = {
    name: (field.annotation, Field(default=None, description=field.description))
    for name, field in TrialView.model_fields.items()
}
TrialFields = create_model(
    "TrialFields",
    __base__=Answer,
    __doc__="What was asked for of a trial with `fields`, and nothing more.",
    **_FIELDS,
)
TrialFieldsPage = create_model(
    "TrialFieldsPage",
    __base__=Answer,
    items=(list[TrialFields], ...),
    next_cursor=(int | None, TrialPage.model_fields["next_cursor"]),
)


class RunView(Answer):
    trial_number: int
    seed: int | None
    state: Open[AttemptState | Literal["waiting"]]
    value: float | None = Field(description="The objective; null unless it completed")


class CandidateView(Answer):
    trial_number: int
    value: float = Field(
        description="What the search chose it by. Chosen for its luck as well, so it is not in the mean"
    )
    runs: list[RunView] = Field(description="Runs with fresh seeds")
    n: int = Field(description="How many of them completed")
    mean: float | None = Field(description="The mean over the fresh seeds; null without a completed run")
    standard_deviation: float | None = Field(
        description="Sample standard deviation; null with fewer than two runs"
    )


class JudgementView(Answer):
    """Whether the winner is more than luck."""

    winner: int = Field(description="Trial number")
    decided_by: Open[Literal["search", "repeats"]] = Field(
        description="repeats: by the best mean over fresh seeds; search: by the best single value"
    )
    candidates: list[CandidateView] = Field(description="The best first")
    p_value: float | None = Field(
        description="p value of Welch's two-sided t-test between the first two candidates"
    )
    distinguishable: bool | None = Field(
        description="Whether p is below 0.05; null if there is nothing to test"
    )
    sentence: str


class BestView(TrialView):
    judgement: JudgementView | None = Field(
        description="How certain the winner is; null if this version cannot read the stored definition"
    )
    pareto_front: list[ParetoPoint] | None = Field(description="Only with several objectives")


class LogLine(Answer):
    at: datetime | None = Field(description="null: a version that kept no times wrote it")
    kind: str = Field(description="`rung`, or the kind of an event of the study")
    message: str
    attempt: int | None = Field(default=None, description="Of a rung: 1 for the trial's first attempt")
    rung: int | None = Field(default=None, description="Of a rung: training examples")
    metrics: dict[str, float | None] = Field(default={}, description="Of a rung: what was measured")


class TrialLog(Answer):
    items: list[LogLine] = Field(description="Oldest first; at most the last 1,000 events and 1,000 rungs")
