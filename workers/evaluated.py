"""What an evaluation says of single rows, so that two adapters can be compared on the same ones. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Statistic = Literal["ratio", "exp_ratio", "macro_f1", "macro_f1_of_all", "mcc", "pearson", "r2"]
"""How a metric follows from sums over rows (`service.analysis.row_statistics` computes it):

- `ratio`: of two sums, [numerator, denominator]; `exp_ratio`: its exponential.
- `macro_f1`: the mean over classes of which there are targets or predictions, from [hits, predictions,
  targets] of each class, all hits first; `macro_f1_of_all`: over all classes.
- `mcc`: from [hits, predictions of each class, targets of each class].
- `pearson`: from [1, x, y, x * x, y * y, x * y]; `r2`: from [1, y, y * y, squared error].
"""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation without a training saw of each row, so that the metric can be computed of a part.

    Of many rows, groups are given in place of single ones: rows are put into them at random, in the same way
    whenever there are as many rows.
    """

    data: str
    """SHA-256 of the eval rows, as the base reads them."""
    rows: int
    """What the metric is a mean over: eval rows, or prompts."""
    statistic: Statistic | None
    """How the objective follows from `objective`; None: it cannot be computed from sums."""
    objective: tuple[tuple[float, ...], ...] = ()
    """[rows or groups, K]: what each adds to the K sums."""
    loss: tuple[tuple[float, ...], ...] = ()
    """[rows or groups, 2]: the same of `eval_loss`, which is a `ratio`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries it was evaluated with: name -> version."""
