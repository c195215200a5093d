"""Evaluation of adapters: loss, perplexity and accuracy over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workers.base.base_model import set_training
from workers.data.batches import collate
from workers.data.examples import Example
from workers.heartbeat import UNWATCHED, Heartbeat
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import RowsUnknownError
from workers.training.forward import batch_losses


@dataclass(frozen=True)
class Totals:
    """Sums over the supervised tokens of a data set, from which every metric is made."""

    loss_sum: float
    """Cross-entropy in nats."""
    correct: int
    """Tokens that the argmax predicts."""
    tokens: int

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.loss_sum + other.loss_sum, self.correct + other.correct, self.tokens + other.tokens
        )

    def metrics(self) -> dict[str, float]:
        """`eval_loss` (token-weighted mean, nats), `perplexity` (its exponential) and `accuracy`."""
        eval_loss = self.loss_sum / self.tokens
        return {
            "eval_loss": eval_loss,
            "perplexity": _exp(eval_loss),
            "accuracy": self.correct / self.tokens,
        }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def length_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most `token_budget` padded tokens.

    Longest first, so that a data set that does not fit shows it at once. An example that is longer than
    the budget makes a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and longest * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    *,
    token_budget: int,
    heartbeat: Heartbeat = UNWATCHED,
) -> list[Totals]:
    """Evaluates adapters on the same examples, in shared passes.

    Modules are switched to evaluation, all but the quantized ones (see `base_model.set_training`), so
    nothing is drawn from any random generator. Left in evaluation mode; training switches back.

    Args:
        host: The base with the adapters on it.
        adapters: At least one.
        examples: Each with at least one supervised token, in any order; the result does not depend on it
            beyond rounding.
        token_budget: Padded tokens per forward pass.
        heartbeat: Notified of each pass.

    Returns:
        The totals of each adapter.

    Raises:
        torch.OutOfMemoryError: A pass did not fit; the same call with a smaller budget may.
    """
    set_training(host.base.model, False)
    lengths = [len(example.input_ids) for example in examples]
    together = max(1, min(len(adapters), token_budget // max(lengths))) if host.shares_evaluations else 1
    totals: list[Totals] = []
    for first in range(0, len(adapters), together):
        some = adapters[first : first + together]
        try:
            found = _evaluate(
                host, some, examples, length_batches(lengths, token_budget // len(some)), heartbeat
            )
            if len(some) > 1 and not all(math.isfinite(one.loss_sum) for one in found):
                # 0 x NaN is NaN: what is not finite may be a pack-mate's. Alone it shows whose it is.
                batches = list(length_batches(lengths, token_budget))
                found = [
                    one
                    for adapter in some
                    for one in _evaluate(host, [adapter], examples, batches, heartbeat)
                ]
            totals += found
        except RowsUnknownError:
            if len(some) == 1:
                raise
            return evaluate(host, adapters, examples, token_budget=token_budget, heartbeat=heartbeat)
    return totals


def _evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[Example],
    batches: Iterable[list[int]],
    heartbeat: Heartbeat,
) -> list[Totals]:
    base, count = host.base, len(adapters)
    loss = torch.zeros(count, dtype=torch.float64, device=base.device)
    correct = torch.zeros(count, dtype=torch.int64, device=base.device)
    tokens = 0
    for indices in batches:
        batch = collate([examples[index] for index in indices] * count, base.pad_id).to(base.device)
        groups = [adapter.rows(len(indices)) for adapter in adapters]
        with (
            heartbeat.passing("evaluation"),
            host.multi_lora.running(
                groups, tokens=batch.input_ids.shape[1], form=host.choose_form(groups), device=base.device
            ),
        ):
            result = batch_losses(base, batch)
        loss += result.losses.double().view(count, -1).sum(1)
        correct += result.correct.view(count, -1).sum(1)
        tokens += batch.supervised_tokens // count
        del result, batch  # else they stay alive through the next pass, and the peak doubles
    return [
        Totals(loss_sum=loss_sum, correct=right, tokens=tokens)
        for loss_sum, right in zip(loss.tolist(), correct.tolist(), strict=True)
    ]
