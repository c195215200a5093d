"""Pairs of answers of which one is better: scores of a reward model, and preference losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.data.batches import MicroBatch, collate
from workers.data.examples import AnyExample, Example, PairExample
from workers.device.devices import to_device
from workers.training.forward import LanguagePass, autocast
from workers.training.metrics import pair_metrics
from workers.training.objectives.base import PassLosses, Share
from workers.training.objectives.labels import HeadBatch, head_inputs
from workers.training.preference import PairLosses, bradley_terry, preference_losses


def rows_of(pairs: Sequence[AnyExample]) -> list[Example]:
    """The rows of pairs, chosen and rejected in turn."""
    return [row for pair in pairs if isinstance(pair, PairExample) for row in (pair.chosen, pair.rejected)]


class RankedPairs:
    """`ranking`: a score for each answer, and the Bradley-Terry loss of their difference."""

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> HeadBatch:
        rows = rows_of(examples)
        inputs = head_inputs(
            [row.input_ids for row in rows], [row.token_type_ids for row in rows], base.pad_id
        )
        count = len(examples)
        return HeadBatch(inputs, torch.zeros(count), torch.arange(count))

    def losses(
        self,
        base: LoadedBase,
        batch: HeadBatch,
        owners: torch.Tensor,
        shares: Sequence[Share],
        *,
        gradient: bool,
    ) -> PassLosses:
        with autocast(base):
            scores = base.model(**batch.inputs).logits
        chosen, rejected = scores.float().view(-1, 2).unbind(1)
        found = bradley_terry(chosen, rejected)
        weights = torch.tensor([share.weight for share in shares], device=owners.device)[owners]
        objective = (found.losses * weights).sum() if gradient else None
        return PassLosses(found.losses.detach(), objective, found.margins.detach())

    def tally(self, adapters: int, base: LoadedBase) -> PairTally:
        return PairTally(adapters, "pairwise_accuracy")

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> None:
        return None


@dataclass(frozen=True)
class PairBatch:
    """N pairs as 2 N rows of a language model, chosen and rejected in turn."""

    batch: MicroBatch
    token_rows: torch.Tensor
    """int64 [S]: the row of each of the batch's targets."""
    references: torch.Tensor | None
    """float32 [2 N]: log-probability of each row's answer under the base without an adapter."""

    @property
    def rows(self) -> int:
        """2 N."""
        return self.batch.rows

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch.tokens

    @property
    def padded_tokens(self) -> int:
        """2 N * T."""
        return self.batch.padded_tokens

    @property
    def target_examples(self) -> torch.Tensor:
        """int64 [N]: one target a pair."""
        return torch.arange(self.rows // 2)

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        references = None if self.references is None else to_device(self.references, device)
        return PairBatch(self.batch.to(device), to_device(self.token_rows, device), references)


class PreferredPairs:
    """`preference`: DPO, ORPO and SimPO on the log-probabilities of both answers.

    The loss goes by sums over a row's tokens, so what each token's cross-entropy counts in the gradient is
    known only when all are: they are taken once to see the sums and once, weighed, for the gradient, from the
    same forward pass.
    """

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> PairBatch:
        batch = collate(rows_of(examples), base.pad_id)
        known = [pair.reference for pair in examples if isinstance(pair, PairExample) and pair.reference]
        references = (
            torch.tensor(known, dtype=torch.float32).flatten() if len(known) == len(examples) else None
        )
        return PairBatch(batch, batch.target_examples, references)

    def losses(
        self,
        base: LoadedBase,
        batch: PairBatch,
        owners: torch.Tensor,
        shares: Sequence[Share],
        *,
        gradient: bool,
    ) -> PassLosses:
        language = LanguagePass(base, batch.batch)
        seen = language.losses(None).losses
        counts = torch.bincount(batch.token_rows, minlength=batch.rows)
        sums = torch.zeros(batch.rows, dtype=torch.float32, device=seen.device)
        sums = sums.index_add(0, batch.token_rows, -seen).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            found = [
                _of_share(share, *parts)
                for share, *parts in zip(
                    shares,
                    *(_by_share(tensor, shares) for tensor in (sums, counts)),
                    _by_share(batch.references, shares),
                    strict=True,
                )
            ]
        losses = torch.cat([one.losses for one in found])
        margins = torch.cat([one.margins for one in found]).detach()
        if not gradient:
            return PassLosses(losses, None, margins)
        weights = torch.tensor([share.weight for share in shares], device=owners.device)[owners]
        (pull,) = torch.autograd.grad((losses * weights).sum(), sums)
        objective = language.losses(-pull[batch.token_rows]).objective
        return PassLosses(losses.detach(), objective, margins)

    def tally(self, adapters: int, base: LoadedBase) -> PairTally:
        return PairTally(adapters, "reward_accuracy")

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> None:
        return None


def answer_log_probabilities(base: LoadedBase, batch: MicroBatch) -> torch.Tensor:
    """float32 [B]: of the supervised tokens of each row together, under whatever adapters are in force."""
    losses = LanguagePass(base, batch).losses(None).losses
    sums = torch.zeros(batch.rows, dtype=torch.float32, device=losses.device)
    return sums.index_add(0, batch.target_examples, -losses)


def _by_share(tensor: torch.Tensor | None, shares: Sequence[Share]) -> list[torch.Tensor | None]:
    if tensor is None:
        return [None] * len(shares)
    return list(tensor.split([2 * share.examples for share in shares]))


def _of_share(
    share: Share, sums: torch.Tensor, counts: torch.Tensor, references: torch.Tensor | None
) -> PairLosses:
    chosen, rejected = sums.view(-1, 2).unbind(1)
    chosen_tokens, rejected_tokens = counts.view(-1, 2).unbind(1)
    reference = (None, None) if references is None else references.view(-1, 2).unbind(1)
    return preference_losses(chosen, rejected, chosen_tokens, rejected_tokens, *reference, share.recipe)


@dataclass(frozen=True, eq=False)
class PairAnswers:
    """What one adapter came to on pairs."""

    losses: torch.Tensor
    """float32 [N], on the CPU."""
    margins: torch.Tensor
    """float32 [N]"""
    accuracy: str
    """What the share of pairs with the chosen answer ahead is called."""

    @property
    def loss_sum(self) -> float:
        """Over all pairs."""
        return float(self.losses.double().sum())

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.losses)

    def metrics(self) -> dict[str, float]:
        """Accuracy, margin and `eval_loss`."""
        return {"eval_loss": self.loss_sum / self.tokens, **pair_metrics(self.margins, self.accuracy)}


class PairTally:
    """Each adapter's losses and margins, kept on the device until the end."""

    def __init__(self, adapters: int, accuracy: str) -> None:
        self._adapters = adapters
        self._accuracy = accuracy
        self._parts: list[torch.Tensor] = []
        self._indices: list[int] = []

    def add(self, losses: PassLosses, batch: object, indices: Sequence[int]) -> None:
        both = torch.stack((losses.losses, losses.answers)).view(2, self._adapters, -1)
        self._parts.append(both)
        self._indices += indices

    def results(self) -> list[PairAnswers]:
        order = torch.argsort(torch.tensor(self._indices))
        losses, margins = torch.cat(self._parts, dim=2).cpu()[..., order]
        return [PairAnswers(*both, self._accuracy) for both in zip(losses, margins, strict=True)]
