"""Language models, decoders and encoder-decoders: cross-entropy of the tokens that carry loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.data.batches import MicroBatch, collate, collate_sources, lay_end_to_end
from workers.data.examples import AnyExample, Example, Seq2SeqExample
from workers.plugins import OwnLoss
from workers.training.objectives.base import PassLosses, Share, of_kind, weights_of
from workers.training.objectives.forward import batch_losses


@dataclass(frozen=True, eq=False)
class RowTotals:
    """The same sums for each of N examples, float64 [N] on the CPU."""

    losses: torch.Tensor
    correct: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Totals:
    """Sums over the supervised tokens of a data set, from which every metric is made."""

    loss_sum: float
    """Cross-entropy in nats."""
    correct: int
    """Tokens that the argmax predicts."""
    tokens: int
    rows: RowTotals | None = None
    """None: they were not wanted."""

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


class LanguageModel:
    """`causal_lm` and `seq2seq_lm`."""

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> MicroBatch:
        if base.task == "seq2seq_lm":
            sources = of_kind(examples, Seq2SeqExample)
            return collate_sources(sources, base.pad_id, base.decoder_start_id)
        rows = of_kind(examples, Example)
        return lay_end_to_end(rows) if base.padding_free else collate(rows, base.pad_id)

    def losses(
        self,
        base: LoadedBase,
        batch: MicroBatch,
        owners: torch.Tensor,
        shares: Sequence[Share],
        *,
        gradient: bool,
    ) -> PassLosses:
        if not gradient:
            found = batch_losses(base, batch)
            return PassLosses(found.losses, None, found.correct)
        smoothing = None
        if any(share.recipe.label_smoothing for share in shares):
            values = [share.recipe.label_smoothing for share in shares]
            smoothing = torch.tensor(values, dtype=torch.float32, device=owners.device)[owners]
        gammas = [share.recipe.focal_gamma if share.recipe.loss == "focal" else 0.0 for share in shares]
        focus = torch.tensor(gammas, device=owners.device)[owners] if any(gammas) else None
        parts: list[tuple[slice, OwnLoss | None]] = []
        if any(share.own_loss is not None for share in shares):
            first = 0
            for share, count in zip(
                shares, torch.bincount(owners, minlength=len(shares)).tolist(), strict=True
            ):
                parts.append((slice(first, first := first + count), share.own_loss))
        weights = weights_of(shares, owners)
        found = batch_losses(base, batch, weights, smoothing=smoothing, focus=focus, parts=parts)
        return PassLosses(found.losses, found.objective, found.correct)

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> TokenTally:
        return TokenTally(adapters, base.device, rows)

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> None:
        return None


class TokenTally:
    """Sums of each adapter's tokens, kept on the device, and of each example's where that matters."""

    def __init__(self, adapters: int, device: torch.device, rows: int = 0) -> None:
        self._adapters = adapters
        self._rows = torch.zeros(2 * adapters + 1, rows, dtype=torch.float64, device=device)
        self._loss = torch.zeros(adapters, dtype=torch.float64, device=device)
        self._correct = torch.zeros(adapters, dtype=torch.int64, device=device)
        self._tokens = 0

    def add(self, losses: PassLosses, batch: MicroBatch, indices: Sequence[int]) -> None:
        self._loss += losses.losses.double().view(self._adapters, -1).sum(1)
        self._correct += losses.answers.view(self._adapters, -1).sum(1)
        self._tokens += batch.supervised_tokens // self._adapters
        if self._rows.numel():
            self._add_rows(losses, batch, indices)

    def _add_rows(self, losses: PassLosses, batch: MicroBatch, indices: Sequence[int]) -> None:
        tokens = len(losses.losses) // self._adapters
        examples = torch.tensor(indices, device=self._rows.device)[batch.target_examples[:tokens]]
        found = [part.view(self._adapters, -1).double() for part in (losses.losses, losses.answers)]
        self._rows.index_add_(1, examples, torch.cat([*found, torch.ones_like(found[0][:1])]))

    def results(self) -> list[Totals]:
        found = zip(self._loss.tolist(), self._correct.tolist(), self._row_totals(), strict=True)
        return [Totals(loss_sum, right, self._tokens, rows) for loss_sum, right, rows in found]

    def _row_totals(self) -> list[RowTotals | None]:
        if not self._rows.numel():
            return [None] * self._adapters
        rows = self._rows.cpu()
        losses, correct = rows[: self._adapters], rows[self._adapters : -1]
        return [RowTotals(*pair, rows[-1]) for pair in zip(losses, correct, strict=True)]


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
