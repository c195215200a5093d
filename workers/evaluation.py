"""Evaluation of the active adapter: loss, perplexity and accuracy over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from workers.base_model import LoadedBase, set_training
from workers.batches import collate
from workers.datasets import Example
from workers.forward import loss_sum, target_logits


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
def evaluate(base: LoadedBase, examples: Sequence[Example], *, token_budget: int) -> Totals:
    """Evaluates the active adapter on examples that hold at least one supervised token.

    Modules are switched to evaluation, all but the quantized ones (see `base_model.set_training`), so
    nothing is drawn from any random generator. Left in evaluation mode; training switches back.

    Args:
        base: The base with the adapter active.
        examples: In any order; the result does not depend on it beyond rounding.
        token_budget: Padded tokens per forward pass.

    Raises:
        torch.OutOfMemoryError: A pass did not fit; the same call with a smaller budget may.
    """
    set_training(base.model, False)
    loss = torch.zeros((), dtype=torch.float64, device=base.device)
    correct = torch.zeros((), dtype=torch.int64, device=base.device)
    tokens = 0
    for indices in length_batches([len(example.input_ids) for example in examples], token_budget):
        batch = collate([examples[index] for index in indices], base.pad_id).to(base.device)
        logits = target_logits(base, batch)
        loss += loss_sum(logits, batch.targets)
        correct += (logits.argmax(dim=-1) == batch.targets).sum()
        tokens += batch.supervised_tokens
        del logits, batch  # else they stay alive through the next pass, and the peak doubles
    return Totals(loss_sum=loss.item(), correct=int(correct.item()), tokens=tokens)
