"""Everything one trial owns: adapter, optimizer, schedule, cursor and counters.

A trial takes part in passes (`shared_pass`), each of which adds the gradient of some rows of its current
effective batch. It moves only when the batch is complete, and only if every number is finite:
until then only gradients have been written, so a pass can be redone or given up and nothing has happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from search_spaces.recipe import Recipe
from search_spaces.trial_length import TrainingPlan, warmup_steps
from workers.contract import OutcomeStatus
from workers.data.batches import DataOrder
from workers.data.examples import AnyExample
from workers.device.memory import is_device_fault
from workers.lora.adapters import Adapter
from workers.lora.lora_dropout import row_keys
from workers.lora.multi_lora import RowGroup
from workers.plugins import OwnLoss
from workers.training.divergence import START_TOKENS, WINDOW_EXAMPLES, DivergenceWatch
from workers.training.effective_batch import EffectiveBatch
from workers.training.noise_scale import NoiseScale, measured_rows
from workers.training.objectives.base import Evaluation, Share
from workers.training.optimizers import AdapterOptimizer, Step, take_steps
from workers.training.schedules import learning_rate_multiplier

_FLOAT16_LOSS_SCALE = 65_536.0
"""First loss scale with float16 compute, which loses small gradients otherwise (torch.amp.GradScaler's)."""

_SAME_START = 0.01
"""Relative difference between the losses of one base on two devices, in bfloat16."""


class TrialEndedError(Exception):
    """The trial ends here, through no fault of the study: diverged, out of memory, or its sweep is over."""

    def __init__(self, status: OutcomeStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step saw."""

    loss_sum: float
    """Over the effective batch before the step, in nats."""
    supervised_tokens: int
    """Of the effective batch."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    learning_rate: float
    """The rate it stepped with."""

    @property
    def train_loss(self) -> float:
        """Token-weighted mean over the effective batch, in nats per supervised token."""
        return self.loss_sum / self.supervised_tokens


@dataclass(frozen=True)
class DueStep:
    """The step that a trial takes when its batch is complete."""

    step: Step
    result: StepResult
    """What there is to say of it once it is taken."""


@dataclass(frozen=True)
class PassResult:
    """What a pass says of one trial."""

    loss_sum: float
    """Over the rows it had in the pass, in nats."""
    norm: float
    """Of the gradient of all the rows so far, under the loss scale."""

    @property
    def finite(self) -> bool:
        """Whether the pass may count."""
        return math.isfinite(self.loss_sum) and math.isfinite(self.norm)


class TrialRun:
    """One trial on one base."""

    def __init__(
        self,
        recipe: Recipe,
        adapter: Adapter,
        examples: Sequence[AnyExample],
        *,
        start: Evaluation,
        divergence_factor: float,
        micro_batch_size: int | None = None,
        loss_scaled: bool = False,
        steps: int | None = None,
        class_weights: torch.Tensor | None = None,
        own_loss: OwnLoss | None = None,
    ) -> None:
        """
        Args:
            recipe: The trial's hyperparameters.
            adapter: Untrained, on its base.
            examples: One epoch of training examples, each with at least one supervised token.
            start: Loss on `divergence.first_examples` before any step.
            divergence_factor: Multiple of the loss at the start above which the trial has diverged.
            micro_batch_size: Most rows it has in one pass; None: any number.
            loss_scaled: Scale the loss, as float16 compute needs it.
            steps: Optimizer steps, over as many epochs as they take; None: those of the recipe's epochs.
            class_weights: float32 [C], what each class counts in its loss; None: all count alike.
            own_loss: What it minimizes, where the recipe names a loss of the study's own.
        """
        self.recipe = recipe
        self.adapter = adapter
        self.examples = examples
        self.micro_batch_size = micro_batch_size
        self.plan = TrainingPlan(len(examples), recipe.batch_size, recipe.epochs, steps)
        self.steps = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.real_tokens = 0
        self.padded_tokens = 0
        # All the memory that a step takes is taken here, so that no step runs out of it half-way.
        self._optimizer = AdapterOptimizer(adapter.master, adapter.gradient, recipe, adapter.segments)
        self._class_weights = class_weights
        self.own_loss = own_loss
        self._accumulated = torch.empty_like(adapter.gradient) if recipe.batch_size > 1 else None
        self._warmup = warmup_steps(recipe.warmup_ratio, self.plan.total_steps)
        self._order = DataOrder(self.plan, recipe.seed)
        self._loss_scale = _FLOAT16_LOSS_SCALE if loss_scaled else 1.0
        self._watch = DivergenceWatch(
            divergence_factor, start_loss_sum=start.loss_sum, start_tokens=start.tokens
        )
        self._start_tokens = start.tokens
        self._noise = NoiseScale()
        self._batch = self._next_batch()

    @property
    def examples_seen(self) -> int:
        """Training examples seen in whole steps, repeats counted."""
        return self.plan.examples_seen(self.steps)

    @property
    def finished(self) -> bool:
        """Whether the last optimizer step is done."""
        return self.steps >= self.plan.total_steps

    @property
    def waiting(self) -> Sequence[int]:
        """The rows of the current effective batch that a pass may have, by index, shortest first."""
        return self._batch.waiting

    @property
    def gradient_noise_scale(self) -> float | None:
        """As `NoiseScale.value` has it, of all the steps so far."""
        return self._noise.value

    @property
    def waiting_lengths(self) -> list[int]:
        """Their tokens."""
        return [self.examples[index].length for index in self.waiting]

    @property
    def loss_weight(self) -> float:
        """What the loss of each supervised token counts: one over how many the *whole* batch has.

        So 8 x 1, 4 x 2 and 1 x 8 rows give the same number and the same gradient.
        """
        return self._loss_scale / self._batch.tokens

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.recipe.peak_learning_rate * learning_rate_multiplier(
            self.recipe.lr_scheduler, self.steps, warmup=self._warmup, total=self.plan.total_steps
        )

    def rows(self, indices: Sequence[int]) -> RowGroup:
        """These rows as a part of a training pass, each with its own dropout."""
        count = len(indices) * self.examples[0].rows
        return self.adapter.rows(count, self.row_keys(indices) if self.adapter.dropout > 0 else ())

    def row_keys(self, indices: Sequence[int]) -> Sequence[int]:
        """What the random numbers of these examples' rows are counted from in the current step."""
        each = self.examples[0].rows
        drawn = indices if each == 1 else [each * index + row for index in indices for row in range(each)]
        return row_keys(self.recipe.seed, self.steps, drawn)

    def share(self, indices: Sequence[int]) -> Share:
        """The same rows as a part of a pass's loss."""
        return Share(len(indices), self.recipe, self.loss_weight, self._class_weights, self.own_loss)

    def gather(self) -> torch.Tensor:
        """After a pass: makes its gradient that of all the rows so far; its norm, float32 []."""
        if self._batch.partial and self._accumulated is not None:
            self.adapter.gradient.add_(self._accumulated)
        norm: torch.Tensor = torch.linalg.vector_norm(self.adapter.gradient)
        return norm

    def commit(self, indices: Sequence[int], result: PassResult) -> DueStep | None:
        """Takes in a pass over these rows.

        Returns:
            The step if they complete the batch, to be taken by `take_steps` and `moved`; None while rows are
            left (or are to be done again, at a smaller loss scale).

        Raises:
            TrialEndedError: The loss or the gradient is not finite, or the smoothed loss has diverged. The
                adapter has not moved.
        """
        if not result.finite:
            if self._loss_scale > 1.0:
                self._halve_loss_scale()
                return None
            raise self.diverged(
                f"train loss {(self._batch.loss_sum + result.loss_sum) / self._batch.tokens:.4g},"
                f" gradient norm {result.norm:.4g}; both must be finite."
            )
        norm = result.norm / self._loss_scale
        if self._batch.take(indices, loss_sum=result.loss_sum, norm=norm):
            return self._due(norm)
        assert self._accumulated is not None  # a batch of one row is never done in part
        self._accumulated.copy_(self.adapter.gradient)
        return None

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything to go on from, bit for bit: tensors on the CPU, and plain values.

        Random numbers have no state: each is a function of the seed, the step and the example.
        """
        tensors = {"adapter": self.adapter.master.detach(), **self._optimizer.moments}
        if self._batch.partial and self._accumulated is not None:
            tensors["accumulated"] = self._accumulated
        values = {
            "steps": self.steps,
            "batch": self._batch.state(),
            "noise": self._noise.state(),
            "loss_scale": self._loss_scale,
            "watch": self._watch.state(),
            "start_tokens": self._start_tokens,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "real_tokens": self.real_tokens,
            "padded_tokens": self.padded_tokens,
        }
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, values

    def began_like(self, values: Mapping[str, Any]) -> bool:
        """Whether a `state` is of a trial that started at the same loss, but for what devices differ by.

        Nothing is known if that was measured on other rows. Version 0.1 measured it on more long ones, and
        does not say on how many tokens.
        """
        then = values.get("start_tokens")
        if then != self._start_tokens and (then is not None or self._start_tokens >= START_TOKENS):
            return True
        return math.isclose(self._watch.start, values["watch"][0], rel_tol=_SAME_START)

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to a `state` of the same recipe on the same base and data."""
        device = self.adapter.master.device
        self.adapter.master.data.copy_(tensors["adapter"])
        self.steps = values["steps"]
        self._optimizer.restore(tensors, steps=self.steps)
        self._batch = self._next_batch()
        self._batch.restore(values["batch"])
        self._noise.restore(values["noise"])
        self._loss_scale = values["loss_scale"]
        if "accumulated" in tensors:
            self._accumulated = tensors["accumulated"].to(device, copy=True)
        self._watch.restore(values["watch"])
        self.train_seconds, self.eval_seconds = values["train_seconds"], values["eval_seconds"]
        self.real_tokens, self.padded_tokens = values["real_tokens"], values["padded_tokens"]

    def _next_batch(self) -> EffectiveBatch:
        if self.finished:
            return EffectiveBatch([], self.examples)
        return EffectiveBatch(self._order.batch(self.steps), self.examples, part=self._measured_rows())

    def _measured_rows(self) -> int | None:
        """How many of the next batch's rows are measured by themselves."""
        return measured_rows(self.plan, self.steps)

    def _due(self, norm: float) -> DueStep:
        learning_rate = self.learning_rate
        batch = self._batch
        self._judge(batch.loss_sum, batch.tokens, batch.rows)
        if batch.part_rows:
            self._noise.update(
                part=batch.part_rows, part_norm=batch.part_norm, whole=batch.rows, whole_norm=norm
            )
        result = StepResult(
            loss_sum=batch.loss_sum,
            supervised_tokens=batch.tokens,
            grad_norm=norm,
            learning_rate=learning_rate,
        )
        # As torch.nn.utils.clip_grad_norm_, with the norm that is known already.
        factor = min(1.0, self.recipe.max_grad_norm / (norm + 1e-6)) / self._loss_scale
        return DueStep(Step(self._optimizer, learning_rate, factor), result)

    def moved(self) -> None:
        """After the step that was due: goes on to the next batch."""
        self.steps += 1
        self._batch = self._next_batch()

    def _judge(self, loss_sum: float, tokens: int, rows: int) -> None:
        """Takes in the loss of a whole batch, before the step.

        Raises:
            TrialEndedError: The step shall not be taken.
        """
        if self._watch.update(loss_sum=loss_sum, tokens=tokens, examples=rows):
            raise self.diverged(
                f"the train loss, smoothed over about {WINDOW_EXAMPLES} examples, is"
                f" {self._watch.smoothed:.4g}, above {self._watch.limit:.4g}, the allowed multiple of"
                f" {self._watch.start:.4g}, where it started."
            )

    def _halve_loss_scale(self) -> None:
        self._loss_scale /= 2
        if self._accumulated is not None:
            self._accumulated.div_(2)

    def diverged(self, what: str) -> TrialEndedError:
        """How the trial ends in the step that it is in: `what` follows a colon."""
        return TrialEndedError(
            OutcomeStatus.DIVERGED,
            f"Diverged in step {self.steps + 1} of {self.plan.total_steps}, after {self.examples_seen}"
            f" training examples, at learning rate {self.learning_rate:.3g}: {what}",
        )


@dataclass(frozen=True)
class Advance:
    """What a pass did to one trial: a whole step, an end, or neither."""

    run: TrialRun
    step: StepResult | None = None
    ended: Exception | None = None
    """`TrialEndedError`, or what broke the trial's step, which is its own affair."""


def advance(taken: Sequence[tuple[TrialRun, Sequence[int], PassResult]]) -> list[Advance]:
    """Takes in a pass: of each trial that had part in it, the rows and what came of them.

    Trials whose batch is complete step together.
    """
    started = time.perf_counter()
    found = [_commit(*one) for one in taken]
    due = {place: one for place, one in enumerate(found) if isinstance(one, DueStep)}
    errors = dict(zip(due, take_steps([one.step for one in due.values()]), strict=True))
    seconds = (time.perf_counter() - started) / len(taken)
    advances = []
    for place, ((run, _indices, _result), one) in enumerate(zip(taken, found, strict=True)):
        run.train_seconds += seconds
        if not isinstance(one, DueStep):
            advances.append(Advance(run, ended=one))
        elif (error := errors[place]) is not None:
            advances.append(Advance(run, ended=error))
        else:
            run.moved()
            advances.append(Advance(run, step=one.result))
    return advances


def _commit(run: TrialRun, indices: Sequence[int], result: PassResult) -> DueStep | Exception | None:
    """The step that is due, if one is; or how the trial ends."""
    try:
        return run.commit(indices, result)
    except TrialEndedError as ended:
        return ended.with_traceback(None)
    except Exception as error:
        if is_device_fault(error):
            raise
        return error
