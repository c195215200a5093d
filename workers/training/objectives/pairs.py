"""Pairs of answers of which one is better: scores of a reward model, and preference losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.data.batches import MicroBatch, collate, lay_end_to_end
from workers.data.examples import AnyExample, Example, PairExample
from workers.device.devices import to_device
from workers.training.objectives.base import PassLosses, Share, of_kind, weights_of
from workers.training.objectives.forward import LanguagePass, autocast
from workers.training.objectives.labels import HeadBatch, head_inputs
from workers.training.objectives.metrics import pair_metrics
from workers.training.objectives.preference import PairLosses, bradley_terry, dpo, orpo, row_weights, simpo


def rows_of(pairs: Sequence[AnyExample]) -> list[Example]:
    """The rows of pairs, chosen and rejected in turn."""
    return [row for pair in of_kind(pairs, PairExample) for row in (pair.chosen, pair.rejected)]


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
        objective = (found.losses * weights_of(shares, owners)).sum() if gradient else None
        return PassLosses(found.losses.detach(), objective, found.margins.detach())

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> PairTally:
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
        """Of the rows together."""
        return self.batch.padded_tokens

    @property
    def row_lengths(self) -> tuple[int, ...] | None:
        """As the batch has them."""
        return self.batch.row_lengths

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
        rows = rows_of(examples)
        batch = lay_end_to_end(rows) if base.padding_free else collate(rows, base.pad_id)
        known = [pair.reference for pair in of_kind(examples, PairExample) if pair.reference]
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
        sums = _row_sums(language.losses(None).losses, batch.token_rows, batch.rows)
        tokens = torch.bincount(batch.token_rows, minlength=batch.rows)
        found: list[PairLosses] = []
        slopes: list[torch.Tensor] = []
        first = 0
        for share in shares:
            rows = slice(first, first := first + 2 * share.examples)
            references = None if batch.references is None else batch.references[rows]
            of_rows = _preference(share.recipe, tokens[rows], references)
            chosen, rejected = sums[rows].view(-1, 2).unbind(1)
            if gradient:
                pairs, *both = row_weights(of_rows, chosen, rejected, torch.full_like(chosen, share.weight))
                slopes.append(torch.stack(both, dim=1).flatten())
            else:
                pairs = of_rows(chosen, rejected)
            found.append(pairs)
        objective = None
        if gradient:
            objective = language.losses(-torch.cat(slopes)[batch.token_rows]).objective
        losses, margins = (torch.cat([getattr(one, name) for one in found]) for name in ("losses", "margins"))
        return PassLosses(losses, objective, margins)

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> PairTally:
        return PairTally(adapters, "reward_accuracy")

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> None:
        return None


def answer_log_probabilities(base: LoadedBase, batch: MicroBatch) -> torch.Tensor:
    """float32 [B]: of the supervised tokens of each row together, under whatever adapters are in force."""
    return _row_sums(LanguagePass(base, batch).losses(None).losses, batch.target_examples, batch.rows)


def _row_sums(losses: torch.Tensor, token_rows: torch.Tensor, rows: int) -> torch.Tensor:
    """float32 [rows]: the log-probability of each row, from the loss of each token."""
    sums = torch.zeros(rows, dtype=torch.float32, device=losses.device)
    return sums.index_add(0, token_rows, -losses)


def _preference(
    recipe: Recipe, tokens: torch.Tensor, references: torch.Tensor | None
) -> Callable[[torch.Tensor, torch.Tensor], PairLosses]:
    """The recipe's loss of the log-probabilities of chosen and rejected answers.

    Args:
        recipe: A trial's.
        tokens: int64 [2 N], supervised ones of each row, chosen and rejected in turn.
        references: float32 [2 N], as in `PairBatch`; only DPO needs them.
    """
    counts = tokens.view(-1, 2).unbind(1)
    match recipe.loss:
        case "orpo":
            return lambda chosen, rejected: orpo(chosen, rejected, *counts, beta=recipe.preference_beta)
        case "simpo":
            return lambda chosen, rejected: simpo(
                chosen, rejected, *counts, beta=recipe.preference_beta, gamma=recipe.simpo_gamma
            )
        case _:
            assert references is not None  # computed when the data was loaded
            known = references.view(-1, 2).unbind(1)
            return lambda chosen, rejected: dpo(
                chosen,
                rejected,
                *known,
                beta=recipe.preference_beta,
                label_smoothing=recipe.label_smoothing,
            )


@dataclass(frozen=True, eq=False)
class PairAnswers:
    """What one adapter came to on pairs."""

    losses: torch.Tensor
    """float32 [N], on the CPU."""
    margins: torch.Tensor
    """float32 [N]"""
    accuracy: Literal["pairwise_accuracy", "reward_accuracy"]
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

    def __init__(self, adapters: int, accuracy: Literal["pairwise_accuracy", "reward_accuracy"]) -> None:
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
