"""What all tasks have in common: how a pass asks for losses, and what an evaluation comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, cast

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.data.examples import AnyExample
from workers.plugins import OwnLoss

_Example = TypeVar("_Example", bound=AnyExample)


@dataclass(frozen=True, eq=False)
class Share:
    """One trial's examples in a pass. They stand together, in the order of the shares."""

    examples: int
    recipe: Recipe
    weight: float = 0.0
    """What the loss of each of its targets counts in the objective."""
    class_weights: torch.Tensor | None = None
    """float32 [C], of the trial's loss; None: all count alike."""
    own_loss: OwnLoss | None = None
    """Of the study's own, where the recipe names one."""


class TaskBatch(Protocol):
    """N examples as tensors, with S targets among them."""

    @property
    def rows(self) -> int:
        """Rows that the model is given, B."""

    @property
    def tokens(self) -> int:
        """Tokens that each of them is padded to, T; laid end to end, of all together."""

    @property
    def padded_tokens(self) -> int:
        """All positions of the pass, padding included where there is any."""

    @property
    def row_lengths(self) -> tuple[int, ...] | None:
        """Tokens of each row, where they are laid end to end; None: they are padded."""

    @property
    def target_examples(self) -> torch.Tensor:
        """int64 [S]: the example that each target belongs to."""

    def to(self, device: torch.device) -> Self:
        """The same on a device, without waiting for the copy."""


@dataclass(frozen=True, eq=False)
class PassLosses:
    """What is known of S targets after a forward pass."""

    losses: torch.Tensor
    """float32 [S], detached: the task's plain measure, whatever loss a trial minimizes, so that trials
    compare."""
    objective: torch.Tensor | None
    """float32 scalar, the weighted sum of what the trials minimize, whose gradient is theirs; None where none
    is wanted."""
    answers: torch.Tensor
    """[S, ...], detached: what metrics are made of."""


class Evaluation(Protocol):
    """What one adapter came to on a data set."""

    @property
    def loss_sum(self) -> float:
        """Of the plain measure, over all targets."""

    @property
    def tokens(self) -> int:
        """Targets."""

    def metrics(self) -> dict[str, float]:
        """The task's metrics by name, `eval_loss` among them."""


class Tally(Protocol):
    """Gathers what adapters that are evaluated together answer."""

    def add(self, losses: PassLosses, batch: Any, indices: Sequence[int]) -> None:
        """Takes in a pass.

        Args:
            losses: Of the examples of the first adapter, then the same examples of the next, and so on.
            batch: What the pass was given, on the device.
            indices: Of those examples in the data set.
        """

    def results(self) -> Sequence[Evaluation]:
        """Of each adapter. Waits for the device."""


class Objective(Protocol):
    """One task."""

    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> TaskBatch:
        """Examples of the task as one batch, on the CPU, padded on the right or laid end to end."""

    def losses(
        self,
        base: LoadedBase,
        batch: Any,
        owners: torch.Tensor,
        shares: Sequence[Share],
        *,
        gradient: bool,
    ) -> PassLosses:
        """A forward pass under whatever adapters are in force.

        Args:
            base: The base.
            batch: From `collate`, on the base's device.
            owners: int64 [S], on the device: the share that each target belongs to.
            shares: In the order of their examples.
            gradient: Whether the objective is wanted.
        """

    def tally(self, adapters: int, base: LoadedBase, *, rows: int = 0) -> Tally:
        """An empty one for so many adapters.

        Args:
            adapters: How many.
            base: The base.
            rows: Examples of the data set, where it matters what each comes to; 0: it does not.
        """

    def class_weights(self, recipe: Recipe, examples: Sequence[AnyExample]) -> torch.Tensor | None:
        """float32 [C]: what each class counts in a trial's loss, on the CPU; None: all count alike."""


def of_kind(examples: Sequence[AnyExample], kind: type[_Example]) -> list[_Example]:
    """The examples, all of which must be of the task's kind: one that is not would be a fault of the code."""
    assert all(isinstance(example, kind) for example in examples)
    return cast(list[_Example], list(examples))


def weights_of(shares: Sequence[Share], owners: torch.Tensor) -> torch.Tensor:
    """float32 [S]: what each target counts."""
    return torch.tensor([share.weight for share in shares], dtype=torch.float32, device=owners.device)[owners]


def padded(rows: Sequence[torch.Tensor], filler: int, length: int | None = None) -> torch.Tensor:
    """int64 [B, T]: rows filled up on the right."""
    whole = torch.full((len(rows), length or max(map(len, rows))), filler, dtype=torch.int64)
    for number, row in enumerate(rows):
        whole[number, : len(row)] = row
    return whole


def mask_of(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [B, T]: 1 for a token and 0 for padding."""
    return padded([torch.ones_like(row) for row in rows], 0)
