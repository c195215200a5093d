"""What crosses the line between the coordinator and a worker: frozen values, nothing else.

Light to import (no torch, no Ray) and picklable, because both sides of a Ray call hold these.
The coordinator sends a `TrialOrder` and, later, `Verdict`s. The worker answers with numbered
events, which it keeps until they are acknowledged: `Preparing`, `TrialStarted`, `Progress`, `Report`, and in
the end exactly one `TrialOutcome` per order. Of no attempt are `PackCapacity`, how many trials the worker
wants at once, `PassCosts`, what its passes cost, and `Stalled`: its training hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec, EvaluationSpec, KeepDecoded, ModelSpec, ObjectiveSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from search_spaces.wording import SENTENCE_CHARACTERS, counted, shortened
from workers.evaluated import Evaluated


class OutcomeStatus(StrEnum):
    """How one attempt ended, as the worker saw it. A lost worker reports nothing."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    """Ended with a checkpoint, from which another attempt is to resume."""


class Decision(StrEnum):
    """What the coordinator wants of a running trial."""

    PRUNE = "prune"
    STOP = "stop"
    PAUSE = "pause"

    @property
    def ends_as(self) -> OutcomeStatus:
        """The status of an attempt that ends by it."""
        ends = {Decision.PRUNE: OutcomeStatus.PRUNED, Decision.PAUSE: OutcomeStatus.PAUSED}
        return ends.get(self, OutcomeStatus.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class RateSweep:
    """A learning-rate range test in place of a training: the rate rises exponentially, step by step."""

    first: float
    """Learning rate of the first optimizer step."""
    last: float
    """Of the last one."""
    steps: int
    """Optimizer steps, regardless of the recipe's epochs; the data repeats as often as they need it."""


@dataclass(frozen=True, kw_only=True)
class PassCosts:
    """What a worker has learnt of its passes: seconds = fixed + per token + per trial. Of no attempt.

    Only the newest is kept. The service stores it, and gives it to workers that begin in the same setting.
    """

    key: str
    """As `TrialOrder.cost_key`."""
    form: str
    """How LoRA products are taken: `looped`, or `chosen` for each pass."""
    device: str
    """`cpu`, or the GPU's name."""
    threads: int
    """Of torch, on a CPU; 0 on a GPU."""
    fixed_s: float
    per_token_s: float
    per_trial_s: float
    bytes_per_token: float | None
    """What a pass takes for each padded token; None: never measured."""
    passes: int
    """From which it was learnt."""


@dataclass(frozen=True, kw_only=True)
class TrialOrder:
    """One trial to train. `artifact_dir` is the attempt's own folder; the worker makes it."""

    attempt_id: int
    study_id: str
    trial_number: int
    model: ModelSpec
    data: DataSpec
    recipe: Recipe
    varied: tuple[str, ...] | None = None
    """Recipe fields in which the study's trials may differ; None: not known, so none is judged by another."""
    objective: ObjectiveSpec
    evaluation: EvaluationSpec
    task: Task = "causal_lm"
    metrics: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, str] = field(default_factory=dict)
    """The study's own metrics and losses: name -> `module:function`."""
    constrained: tuple[str, ...] = ()
    """Metrics that the study's constraints name, which a completed trial must have."""
    micro_batch_size: int | None
    """Examples of the trial per pass; None: the worker chooses. Changes no number, but for the activations
    that a base's own dropout drops (as in GPT-2), which are drawn by micro-batch."""
    trials_per_worker: int | None = None
    """Most trials that train together in the worker; None: memory and throughput decide."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass in place of keeping them: less memory, more time."""
    keep_decoded: KeepDecoded = "auto"
    """Whether the base's quantized weights are decoded once and kept: more memory, less time."""
    artifact_dir: str
    resume_from: tuple[str, ...] = ()
    """Checkpoint folders of earlier attempts of the trial, newest first. Ones that are absent or unusable
    are passed over; with none left the trial starts from the beginning."""
    study_created_at: datetime | None = None
    """The date that a chat template writes, so that all attempts of a study read the same rows, whatever the
    day; None: a template that writes it is refused."""
    limits: LoadingLimits = field(default_factory=LoadingLimits)
    """What its data and base may be read from, and how much memory that may take."""
    check_loading: bool = False
    """Whether tokenizer and data are loaded in a process of their own first, because a worker has died before
    the study's first step."""
    cost_key: str | None = None
    """Orders with the same one have passes that cost the same; None: what is learnt of them is not kept."""
    known_costs: tuple[PassCosts, ...] = ()
    """What earlier workers learnt under that key, on whatever device."""
    rate_sweep: RateSweep | None = None
    """Set for a range test: nothing is evaluated and no adapter is kept; the outcome holds the curve."""
    evaluates: str | None = None
    """Set for an evaluation: the path or URL of the adapter that is evaluated once. Nothing is trained, no
    rung is reported and no adapter is kept; the outcome holds what each row came to."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Sent for an attempt; takes effect between two optimizer steps.

    There is no "continue": training never waits, so silence means go on.
    """

    attempt_id: int
    decision: Decision
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Rows read, rows left out for want of a supervised token, and examples cut to `max_length`."""

    train_rows: int
    train_skipped: int
    train_truncated: int
    eval_rows: int
    eval_skipped: int
    eval_truncated: int

    def in_words(self) -> str:
        """`600 train rows, 120 eval rows`, and what was lost of them, if anything was."""
        return ", ".join(
            _rows(name, rows, skipped, truncated)
            for name, rows, skipped, truncated in (
                ("train", self.train_rows, self.train_skipped, self.train_truncated),
                ("eval", self.eval_rows, self.eval_skipped, self.eval_truncated),
            )
        )


def _rows(name: str, rows: int, skipped: int, truncated: int) -> str:
    losses = [f"{skipped:,} skipped for having no supervised token"] * bool(skipped)
    losses += [f"{truncated:,} cut to max_length"] * bool(truncated)
    return counted(rows, f"{name} row") + (f" ({'; '.join(losses)})" if losses else "")


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """What the worker is doing for an order that has not started. Informative: only the newest is kept."""

    attempt_id: int
    stage: str
    """In words, such as `loading the base ...`; the same for every trial that waits for the same."""


@dataclass(frozen=True, kw_only=True)
class UnusableCheckpoint:
    """A checkpoint of an earlier attempt that this one could not resume from."""

    folder: str
    """As in `TrialOrder.resume_from`."""
    reason: str
    """A sentence with the folder in it, without a full stop at its end."""
    missing: bool = False
    """Nothing was ever written there, or it has been removed."""


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """The order's data and model are ready; the first optimizer step comes next.

    It comes a second time for an attempt that had to leave the device and found no checkpoint to resume from.
    """

    attempt_id: int
    total_examples: int
    """Training examples the trial sees if nothing stops it."""
    total_steps: int
    """Optimizer steps, likewise."""
    micro_batch_size: int
    device: str
    trainable_parameters: int
    data: DataSummary
    """What became of the rows, so that nobody trains on a tenth of a file without knowing."""
    resumed_at_examples: int = 0
    """Training examples that the checkpoint had seen; 0: from the beginning."""
    passed_over: tuple[UnusableCheckpoint, ...] = ()
    """Checkpoints newer than the one it resumes from, newest first, and why each was not used."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a trial is between rungs. Informative: the worker may drop an older one for a newer."""

    attempt_id: int
    examples_seen: int
    step: int
    train_loss: float
    """The task's plain loss over the last effective batch, a mean over its terms: of a language model nats
    per supervised token."""
    learning_rate: float
    tokens: tuple[int, int] = 0, 0
    """In the trial's training passes so far: tokens, and positions, padding included."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The evaluation at one rung."""

    attempt_id: int
    rung: int
    """Nominal training examples: a multiple of `evaluation.every_examples`, or the total at the
    end. Trials with different batch sizes meet at the same rungs."""
    examples_seen: int
    """Examples really seen: `rung` rounded up to a whole optimizer step."""
    step: int
    epoch: float
    metrics: Mapping[str, float]
    """Those of the task, `eval_loss` always; generated ones only at rungs where text was generated."""
    train_loss: float
    """The task's plain loss since the previous rung, a mean over its terms."""
    train_seconds: float
    """Training time so far, evaluation excluded."""
    is_best: bool
    """Whether the objective is the best of this attempt so far; its adapter has been saved."""
    gradient_noise_scale: float | None = None
    """The critical batch size in examples, since the beginning; None: no step could be measured, or no signal
    was to be seen in the noise. See `workers.training.noise_scale`."""


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """The end of one attempt."""

    attempt_id: int
    status: OutcomeStatus
    reason: str
    """One sentence a person can act on."""
    value: float | None = None
    """The objective at the best rung; set if and only if `status` is completed."""
    best_rung: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All metrics at the best rung."""
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    """All metrics at the last rung."""
    examples_seen: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    """Of its passes and optimizer steps, by the clock on the wall, other attempts' part included. In a shared
    pack the share of each pass that its rows have, so it is less than alone, by what sharing saves."""
    eval_seconds: float = 0.0
    """Likewise of its evaluations: one shared by K trials counts a Kth for each."""
    peak_memory_bytes: int = 0
    """Peak allocated on the device, and on CPU peak resident memory of the worker (its libraries included),
    since the trial that found the worker idle had been loaded: in a shared pack the pack's, perhaps of before
    its time. Outside Linux a CPU's peak is that of the process's whole life."""
    predicted_memory_bytes: int | None = None
    """What the cost model said of the pack once the trial was in it; None: no pass was measured yet."""
    trainable_parameters: int | None = None
    """Numbers in the adapter and the new head; None: it was never made."""
    gradient_noise_scale: float | None = None
    """As `Report.gradient_noise_scale`, at the end."""
    rate_curve: tuple[tuple[float, float], ...] = ()
    """Of a range test: learning rate and train loss of each optimizer step, up to the one at which it
    diverged."""
    useful_token_share: float | None = None
    """Share of the positions in the trial's passes that held a token, not padding; None: no pass was made."""
    best_adapter_dir: str | None = None
    last_adapter_dir: str | None = None
    fatal_to_study: bool = False
    """The fault is in the study's model or data, so every other trial would fail alike."""
    storage_fault: bool = False
    """Its artifacts could not be written: the trial itself did nothing wrong, and can go on once they can."""
    unusable_adapter: bool = False
    """Of an evaluation: the adapter is gone, or cannot be put on this base."""
    evaluated: Evaluated | None = None
    """Of an evaluation that completed."""

    def __post_init__(self) -> None:
        # It may quote a library's error, and that a row of the data.
        object.__setattr__(self, "reason", shortened(self.reason, SENTENCE_CHARACTERS))


@dataclass(frozen=True, kw_only=True)
class PackCapacity:
    """How many trials the worker wants at once. Of no attempt; said when the number changes.

    It may fall below the trials that run: those go on, and no new one is wanted until some have ended.
    """

    slots: int
    """Trials the worker wants to have at once, those running included."""
    reason: str
    """One sentence with the numbers that led to it."""
    predicted_bytes: int | None = None
    """What the cost model says of a pack of that size."""
    measured_bytes: int | None = None
    """The peak that was measured, of the pack as it was."""


@dataclass(frozen=True, kw_only=True)
class Stalled:
    """The worker answers, but its training thread hangs, and only the end of its process ends the call. Of no
    attempt: it concerns all that the worker has."""

    reason: str
    """What did not end, and for how long, in words."""


Event = Preparing | TrialStarted | Progress | Report | TrialOutcome | PackCapacity | PassCosts | Stalled


@dataclass(frozen=True, kw_only=True)
class NumberedEvent:
    """An event and its place in the worker's log. Numbers start at 1 and never repeat."""

    seq: int
    event: Event


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker is started with."""

    name: str
    """Its id, and that of its Ray actor."""
    num_cpus: float
    """CPU cores that are reserved in the cluster; on a CPU, the threads it trains with."""
    num_gpus: float
    """GPUs likewise; 0: it trains on the CPU even where there is a GPU."""
    orphan_timeout_s: float
    """Seconds without a request for events after which its process ends itself."""
    training_silence_s: float
    """Seconds that a pass may always take before the training counts as hung."""
    loading_silence_s: float
    """Likewise for all that is not a pass, such as loading a base."""
    study_id: str | None = None
    """Whose trials it trains from the start; None: it waits until a study takes it."""
    keep_base_s: float = 0.0
    """Seconds that it keeps the base of a study that has given it back, before its process ends itself."""


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a worker says of itself."""

    worker_id: str
    node: str
    pid: int
    device: str
    slots: int
    """Trials it wants at once at present."""
    free_slots: int
    """Orders it wants more than it has; 0 while it has more than its slots."""
    running_attempts: tuple[int, ...]
    """Orders taken and without an outcome yet, those that wait for their turn included."""
    base: str | None
    """Model id and quantization of the loaded base, if any."""
    newest_attempt: int | None = None
    """The highest of all attempts of its study that it ever took, those that have ended included."""
    device_id: str | None = None
    """Its GPU: `<node>/<UUID>`, or `<node>/<index>` where that is not known. None: it trains on the CPU."""
    study_id: str | None = None
    """The study that it was given to; None: it waits for one."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """Both as in its `WorkerSpec`."""
