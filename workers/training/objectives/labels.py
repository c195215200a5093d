"""Heads: classes or a score of a text, and classes of its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from search_spaces.faults import nearest_name
from search_spaces.recipe import ClassWeights, Recipe
from search_spaces.tasks import LOSSES
from search_spaces.wording import shortened
from workers.base.base_model import LoadedBase
from workers.base.heads import Labels
from workers.data.examples import AnyExample, LabelledExample, TokenLabelsExample
from workers.data.tokenization import IGNORED
from workers.device.devices import to_device
from workers.errors import DataError, LossError
from workers.training.objectives.base import PassLosses, Share, mask_of, of_kind, padded
from workers.training.objectives.forward import autocast
from workers.training.objectives.losses import balanced_weights, class_losses, regression_losses
from workers.training.objectives.metrics import class_metrics, regression_metrics, token_metrics
from workers.training.objectives.own_losses import own_losses

_LISTED, _SHOWN = 10, 60
"""Labels that a message lists, and characters of each."""


@dataclass(frozen=True)
class HeadBatch:
    """Texts for a model with a head, padded on the right."""

    inputs: dict[str, torch.Tensor]
    """What the model is called with, int64 [B, T] each."""
    targets: torch.Tensor
    """int64 [S], or float32 [S] or [S, C]: see `LabelledExample.label`."""
    target_examples: torch.Tensor
    """int64 [S]: the example that each target belongs to."""
    positions: torch.Tensor | None = None
    """int64 [S], in the flattened [B * T], of targets that are tokens'; None: of whole rows."""
    row_lengths: None = None
    """They are padded."""

    @property
    def rows(self) -> int:
        """B."""
        return self.inputs["input_ids"].shape[0]

    @property
    def tokens(self) -> int:
        """T."""
        return self.inputs["input_ids"].shape[1]

    @property
    def padded_tokens(self) -> int:
        """B * T."""
        return self.inputs["input_ids"].numel()

    def to(self, device: torch.device) -> HeadBatch:
        """The same on a device."""
        return HeadBatch(
            {name: to_device(tensor, device) for name, tensor in self.inputs.items()},
            to_device(self.targets, device),
            to_device(self.target_examples, device),
            None if self.positions is None else to_device(self.positions, device),
        )


def head_inputs(
    rows: Sequence[torch.Tensor], types: Sequence[torch.Tensor | None], pad_id: int
) -> dict[str, torch.Tensor]:
    """Rows, their masks and, where they have them, their token types, each int64 [B, T].

    Args:
        rows: int64 [T] each.
        types: int64 [T] of each row, or None for all of them.
        pad_id: What fills up the shorter ones.
    """
    inputs = {"input_ids": padded(rows, pad_id), "attention_mask": mask_of(rows)}
    given = [kinds for kinds in types if kinds is not None]
    return {**inputs, "token_type_ids": padded(given, 0)} if given else inputs


class LabelledRows:
    """`sequence_classification` and `regression`."""

    def __init__(self, labels: Labels | None) -> None:
        """
        Args:
            labels: What the head answers; None: a score.
        """
        self._labels = labels

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> HeadBatch:
        rows = of_kind(examples, LabelledExample)
        return HeadBatch(
            head_inputs([row.input_ids for row in rows], [row.token_type_ids for row in rows], base.pad_id),
            torch.stack([row.label for row in rows]),
            torch.arange(len(rows)),
        )

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
            answers = base.model(**batch.inputs).logits
        answers = answers.float().squeeze(-1) if self._labels is None else answers.float()
        return weighed(answers, batch.targets, owners, shares, gradient=gradient)

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> LabelTally:
        return LabelTally(adapters, self._labels)

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> torch.Tensor | None:
        if self._labels is None:
            return None
        rows = [example.label for example in of_kind(examples, LabelledExample)]
        counts = torch.zeros(len(self._labels.names), dtype=torch.int64)
        for label in rows:
            counts += label.long() if self._labels.multi_label else _one_hot(label, len(counts))
        return weights_from(recipe, self._labels, counts)


class LabelledTokens:
    """`token_classification`."""

    def __init__(self, labels: Labels) -> None:
        """
        Args:
            labels: Of tokens.
        """
        self._labels = labels

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> HeadBatch:
        rows = of_kind(examples, TokenLabelsExample)
        inputs = head_inputs([row.input_ids for row in rows], [None] * len(rows), base.pad_id)
        flat = padded([row.labels for row in rows], IGNORED).flatten()
        positions = (flat != IGNORED).nonzero().squeeze(1)
        return HeadBatch(
            inputs, flat[positions], positions // inputs["input_ids"].shape[1], positions=positions
        )

    def losses(
        self,
        base: LoadedBase,
        batch: HeadBatch,
        owners: torch.Tensor,
        shares: Sequence[Share],
        *,
        gradient: bool,
    ) -> PassLosses:
        assert batch.positions is not None
        with autocast(base):
            logits = base.model(**batch.inputs).logits
        answers = logits.flatten(0, 1).index_select(0, batch.positions).float()
        return weighed(answers, batch.targets, owners, shares, gradient=gradient)

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> LabelTally:
        return LabelTally(adapters, self._labels, of_tokens=True)

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> torch.Tensor | None:
        counts = torch.zeros(len(self._labels.names), dtype=torch.int64)
        for example in of_kind(examples, TokenLabelsExample):
            own = example.labels[example.labels != IGNORED]
            counts += torch.bincount(own, minlength=len(counts))
        return weights_from(recipe, self._labels, counts)


def weighed(
    answers: torch.Tensor,
    targets: torch.Tensor,
    owners: torch.Tensor,
    shares: Sequence[Share],
    *,
    gradient: bool,
) -> PassLosses:
    """Plain losses of all targets, and of each trial's own the objective that it minimizes.

    Args:
        answers: float32 [S, C], or [S] of scores.
        targets: As in `HeadBatch`.
        owners: int64 [S], in ascending order.
        shares: Of the trials.
        gradient: Whether the objective is wanted.
    """
    is_score = answers.dim() == 1
    seen = answers.detach()
    plain = regression_losses(seen, targets) if is_score else class_losses(seen, targets)
    if not gradient:
        return PassLosses(plain, None, seen)
    objective = answers.new_zeros(())
    counts = torch.bincount(owners, minlength=len(shares)).tolist()
    parts = zip(torch.split(answers, counts), torch.split(targets, counts), shares, strict=True)
    for own, wanted, share in parts:
        recipe, weights = share.recipe, share.class_weights
        weights = None if weights is None else weights.to(own.device)
        if share.own_loss is not None:
            losses = own_losses(share.own_loss, own, wanted)
            losses = losses if weights is None else losses * weights[wanted]
        elif is_score:
            loss: Literal["huber", "mse"] = "huber" if recipe.loss == "huber" else "mse"
            losses = regression_losses(own, wanted, loss=loss, huber_delta=recipe.huber_delta)
        else:
            losses = class_losses(
                own,
                wanted,
                loss="focal" if recipe.loss == "focal" else "cross_entropy",
                focal_gamma=recipe.focal_gamma,
                label_smoothing=recipe.label_smoothing,
                class_weights=weights,
            )
        objective = objective + losses.sum() * share.weight
    return PassLosses(plain, objective, seen)


def weights_from(recipe: Recipe, labels: Labels, counts: torch.Tensor) -> torch.Tensor | None:
    """What a recipe's `class_weights` come to, float32 [C]; None: all count alike.

    Args:
        recipe: The trial's.
        labels: The classes.
        counts: int64 [C], rows or tokens of each in the train data.

    Raises:
        DataError: The recipe weighs a label that the train data does not have.
        LossError: A loss of the study's own is to be weighed, and a row may have several labels.
    """
    wanted = recipe.class_weights
    if wanted == "none":
        return None
    if labels.multi_label and recipe.loss not in (None, *LOSSES):
        raise LossError(
            f"recipe.class_weights cannot be used with {recipe.loss}, a loss of the study's own, where a row"
            " may have several labels, because the loss is one value for the whole row. Weigh the labels in"
            " the loss, or set class_weights to none."
        )
    if wanted == "balanced":
        return balanced_weights(counts)
    check_class_weights(wanted, labels)
    return torch.tensor([float(wanted.get(name, 1.0)) for name in labels.names])


def check_class_weights(wanted: ClassWeights, labels: Labels) -> None:
    """Raises DataError where a weight is of a label that the train data does not have."""
    unknown = [] if isinstance(wanted, str) else [name for name in wanted if name not in labels.names]
    if unknown:
        nearest = nearest_name(unknown[0], labels.names)
        hint = f"Its labels are {_listed(labels)}" if nearest is None else f"Did you mean {nearest!r}"
        raise DataError(
            f"recipe.class_weights names {unknown[0]!r}, which is not a label of the train data."
            f" {hint}{'.' if nearest is None else '?'}"
        )


def check_label_metrics(labels: Labels, needed: Collection[str]) -> None:
    """Raises DataError where a metric cannot be measured with the labels of the train data."""
    for metric in ("mcc", "roc_auc"):
        if metric in needed and labels.multi_label:
            raise DataError(
                f"The metric {metric} is for rows of one label, and rows of the train data have lists of"
                " labels. Choose macro_f1 or micro_f1."
            )
    if "roc_auc" in needed and len(labels.names) != 2:
        raise DataError(
            f"The metric roc_auc is for two labels; the train data has {len(labels.names):,}:"
            f" {_listed(labels)}. Choose mcc."
        )


def _listed(labels: Labels) -> str:
    """The first labels, for messages."""
    more = len(labels.names) - _LISTED
    shown = ", ".join(shortened(repr(name), _SHOWN) for name in labels.names[:_LISTED])
    return shown if more <= 0 else f"{shown} and {more:,} more"


@dataclass(frozen=True, eq=False)
class Answers:
    """What one adapter answered on a data set, in the data's own order."""

    losses: torch.Tensor
    """float32 [S], on the CPU."""
    answers: torch.Tensor
    """float32 [S, C] or [S]."""
    targets: torch.Tensor
    labels: Labels | None
    rows: torch.Tensor | None = field(default=None)
    """int64 [S]: the example of each token; None: targets are rows."""

    @cached_property
    def loss_sum(self) -> float:
        """Of the plain measure."""
        return float(self.losses.double().sum())

    @property
    def tokens(self) -> int:
        """S."""
        return len(self.losses)

    def metrics(self) -> dict[str, float]:
        """The task's metrics by name."""
        eval_loss = {"eval_loss": self.loss_sum / self.tokens}
        if self.labels is None:
            return {**eval_loss, **regression_metrics(self.answers, self.targets)}
        if self.rows is None:
            return {**eval_loss, **class_metrics(self.answers, self.targets)}
        counts = torch.unique_consecutive(self.rows, return_counts=True)[1].tolist()
        names = self.labels.names
        return {**eval_loss, **token_metrics(self.answers, self.targets, counts, names)}


class LabelTally:
    """Each adapter's answers, kept on the device until the end."""

    def __init__(self, adapters: int, labels: Labels | None, *, of_tokens: bool = False) -> None:
        self._adapters = adapters
        self._labels = labels
        self._of_tokens = of_tokens
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._order: list[int] = []
        self._rows: list[torch.Tensor] = []

    def add(self, losses: PassLosses, batch: HeadBatch, indices: Sequence[int]) -> None:
        count = len(losses.losses) // self._adapters
        answers = losses.answers.view(self._adapters, count, *losses.answers.shape[1:])
        self._parts.append((losses.losses.view(self._adapters, count), answers, batch.targets[:count]))
        self._rows.append(torch.tensor(indices)[batch.target_examples[:count].cpu()])

    def results(self) -> list[Answers]:
        rows = torch.cat(self._rows)
        order = torch.argsort(rows, stable=True)
        losses, answers = (torch.cat([part[i] for part in self._parts], dim=1).cpu() for i in (0, 1))
        targets = torch.cat([part[2] for part in self._parts]).cpu()[order]
        of_tokens = rows[order] if self._of_tokens else None
        return [
            Answers(losses[one][order], answers[one][order], targets, self._labels, of_tokens)
            for one in range(self._adapters)
        ]


def _one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(label, classes)
