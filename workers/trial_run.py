"""Everything one trial owns, and its optimizer step.

A step is transactional. Until the moment the optimizer moves, only gradients have been written; running
out of memory, overflow or divergence is noticed before that moment, so a step can be redone or given up
and nothing has happened.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_spaces.recipe import Recipe
from workers.adapters import Adapter
from workers.base_model import LoadedBase, set_training
from workers.batches import (
    DataOrder,
    TrainingPlan,
    collate,
    derive_seed,
    micro_batches,
)
from workers.contract import OutcomeStatus
from workers.datasets import Example
from workers.divergence import WINDOW_EXAMPLES, DivergenceWatch
from workers.evaluation import Totals, evaluate
from workers.forward import loss_sum, target_logits
from workers.generators import TrialGenerators
from workers.memory import (
    choose_micro_batch_size,
    describe,
    is_out_of_memory,
    release,
    tokens_per_forward,
)
from workers.optimizers import build_optimizer, set_learning_rate
from workers.schedules import learning_rate_multiplier, warmup_steps

_log = logging.getLogger(__name__)

_FLOAT16_LOSS_SCALE = 65_536.0
"""First loss scale with float16 compute, which loses small gradients otherwise (torch.amp.GradScaler's)."""


class TrialEndedError(Exception):
    """The trial ends here, through no fault of the study: diverged or out of memory."""

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
class _Gradient:
    """What is known once the gradient stands and before anything has moved."""

    loss_sum: float
    tokens: int
    norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss_sum) and math.isfinite(self.norm)


class TrialRun:
    """One trial on one base: adapter, optimizer, schedule, generators, cursor and counters.

    The caller makes the trial's adapter the active one before `step` and `evaluate`.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: LoadedBase,
        adapter: Adapter,
        examples: Sequence[Example],
        *,
        divergence_factor: float,
        micro_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            recipe: The trial's hyperparameters.
            base: With the trial's adapter on it, untrained and active.
            adapter: That adapter.
            examples: One epoch of training examples, each with at least one supervised token.
            divergence_factor: Multiple of the loss at the start above which the trial has diverged.
            micro_batch_size: Examples per forward pass; None: as many as a token budget allows.
        """
        self.recipe = recipe
        self.plan = TrainingPlan(len(examples), recipe.batch_size, recipe.epochs)
        self.steps = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self._base = base
        self._adapter = adapter
        self._examples = examples
        self._optimizer = build_optimizer(adapter.parameters, recipe)
        self._warmup = warmup_steps(recipe.warmup_ratio, self.plan.total_steps)
        self._order = DataOrder(self.plan, recipe.seed)
        self._generators = TrialGenerators(derive_seed(recipe.seed, "dropout"), base.device)
        self._loss_scale = _FLOAT16_LOSS_SCALE if base.compute_dtype == torch.float16 else 1.0
        self._token_budget = tokens_per_forward(base.device, base.vocabulary_size)
        longest = max(len(example.input_ids) for example in examples)
        chosen = choose_micro_batch_size(recipe.batch_size, longest, self._token_budget)
        self.micro_batch_size = min(micro_batch_size or chosen, recipe.batch_size)
        self._watch = self._watch_from_start(divergence_factor)

    @property
    def examples_seen(self) -> int:
        """Training examples seen, repeats counted."""
        return self.plan.examples_seen(self.steps)

    @property
    def finished(self) -> bool:
        """Whether the last optimizer step is done."""
        return self.steps >= self.plan.total_steps

    def step(self) -> StepResult:
        """Takes one optimizer step on one whole effective batch.

        The loss is the sum over the batch's supervised tokens divided by how many there are in the *whole*
        effective batch, so 8 x 1, 4 x 2 and 1 x 8 examples give the same number and the same gradient.
        (Dropout, LoRA's or the base's own, draws by micro-batch: the split changes which activations drop.)

        Raises:
            TrialEndedError: The loss or the gradient is not finite, the smoothed loss has diverged, or the
                batch does not fit even one example at a time. The adapter has not moved.
        """
        started = time.perf_counter()
        if not self._base.model.training:  # walks all modules, so only after an evaluation
            set_training(self._base.model, True)
        batch = [self._examples[index] for index in self._order.batch(self.steps)]
        learning_rate = self.recipe.learning_rate * learning_rate_multiplier(
            self.recipe.lr_scheduler, self.steps, warmup=self._warmup, total=self.plan.total_steps
        )
        gradient = self._gradient(batch)
        self._require_convergence(gradient, len(batch), learning_rate)

        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._generators.commit()
        self.steps += 1
        self.train_seconds += time.perf_counter() - started
        return StepResult(
            loss_sum=gradient.loss_sum,
            supervised_tokens=gradient.tokens,
            grad_norm=gradient.norm,
            learning_rate=learning_rate,
        )

    def evaluate(self, examples: Sequence[Example]) -> Totals:
        """Evaluates the adapter as it is; the trial's generators stay where they are.

        Raises:
            TrialEndedError: It does not fit even one example at a time.
        """
        started = time.perf_counter()
        longest = max(len(example.input_ids) for example in examples)
        while True:
            try:
                return evaluate(self._base, examples, token_budget=self._token_budget)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                self.eval_seconds += time.perf_counter() - started
                started = time.perf_counter()
            release(self._base.device)
            if self._token_budget <= longest:
                raise self._out_of_memory(f"evaluating one example of {longest} tokens")
            self._token_budget = max(self._token_budget // 2, longest)

    def _gradient(self, batch: Sequence[Example]) -> _Gradient:
        """Leaves the effective batch's clipped gradient in the adapter.

        Running out of memory halves the micro-batch, and overflow of the float16 loss scale halves the
        scale; either way the whole batch is redone with the same draws.
        """
        while True:
            try:
                with self._generators.lent():
                    gradient = self._accumulate(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                if gradient.finite or self._loss_scale == 1.0:
                    return gradient
                self._loss_scale /= 2
                continue
            # Only here, outside the handler, has the traceback let go of the pass's tensors.
            self._halve_micro_batch(batch)

    def _accumulate(self, batch: Sequence[Example]) -> _Gradient:
        """Forward and backward over all micro-batches, then clipping. Waits for the device once."""
        self._optimizer.zero_grad(set_to_none=True)
        parts = [collate(part, self._base.pad_id) for part in micro_batches(batch, self.micro_batch_size)]
        tokens = sum(part.supervised_tokens for part in parts)
        total = torch.zeros((), dtype=torch.float64, device=self._base.device)
        for part in parts:
            on_device = part.to(self._base.device)
            loss = loss_sum(target_logits(self._base, on_device), on_device.targets)
            (loss * (self._loss_scale / tokens)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self._loss_scale != 1.0:
            torch._foreach_mul_(
                [p.grad for p in self._adapter.parameters if p.grad is not None], 1.0 / self._loss_scale
            )
        norm = torch.nn.utils.clip_grad_norm_(self._adapter.parameters, self.recipe.max_grad_norm)
        loss_value, norm_value = torch.stack((total, norm.double())).tolist()
        return _Gradient(loss_sum=loss_value, tokens=tokens, norm=norm_value)

    def _halve_micro_batch(self, batch: Sequence[Example]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        release(self._base.device)
        if self.micro_batch_size == 1:
            longest = max(len(example.input_ids) for example in batch)
            raise self._out_of_memory(f"training at micro-batch 1, on examples of up to {longest} tokens")
        smaller = (min(self.micro_batch_size, len(batch)) + 1) // 2
        _log.warning(
            "out of memory at micro-batch %d; going on with %d (the effective batch stays %d)",
            self.micro_batch_size,
            smaller,
            self.recipe.batch_size,
        )
        self.micro_batch_size = smaller

    def _out_of_memory(self, what: str) -> TrialEndedError:
        return TrialEndedError(
            OutcomeStatus.OUT_OF_MEMORY,
            f"Out of memory {what}, with LoRA rank {self.recipe.lora_r}"
            f" ({self._adapter.trainable_parameters:,} trainable parameters) beside the base"
            f"{describe(self._base.device)}. Shorten max_length, lower the rank, or use a larger device.",
        )

    def _watch_from_start(self, factor: float) -> DivergenceWatch:
        """Measures the start on the first examples of the trial's own order, before any step."""
        window = TrainingPlan(len(self._examples), WINDOW_EXAMPLES, epochs=1)
        first = DataOrder(window, self.recipe.seed).batch(0)
        start = self.evaluate([self._examples[index] for index in first])
        self.eval_seconds = 0.0  # preparation, not an evaluation of the trial
        return DivergenceWatch(factor, start_loss_sum=start.loss_sum, start_tokens=start.tokens)

    def _require_convergence(self, gradient: _Gradient, examples: int, learning_rate: float) -> None:
        where = (
            f"in step {self.steps + 1} of {self.plan.total_steps}, after {self.examples_seen} training"
            f" examples, at learning rate {learning_rate:.3g}"
        )
        if not gradient.finite:
            raise TrialEndedError(
                OutcomeStatus.DIVERGED,
                f"Diverged {where}: train loss {gradient.loss_sum / gradient.tokens:.4g},"
                f" gradient norm {gradient.norm:.4g}; both must be finite.",
            )
        if self._watch.update(loss_sum=gradient.loss_sum, tokens=gradient.tokens, examples=examples):
            raise TrialEndedError(
                OutcomeStatus.DIVERGED,
                f"Diverged {where}: the train loss, smoothed over about {WINDOW_EXAMPLES} examples, is"
                f" {self._watch.smoothed:.4g}, above {self._watch.limit:.4g}, the allowed multiple of"
                f" {self._watch.start:.4g}, where it started.",
            )
