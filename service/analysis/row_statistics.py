"""Metrics from sums over eval rows, for many draws of rows at once. Pure; numpy alone.

`workers.evaluated.Statistic` says what the sums of each statistic are. Where a definition divides by zero,
the metric is what `workers.training.objectives.metrics` makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def statistic(name: str, sums: Array) -> Array:
    """The metric of each draw.

    Args:
        name: a `Statistic`.
        sums: float64 [..., K].

    Returns:
        float64 [...].
    """
    return _STATISTICS[name](sums)


def _divided(numerators: Array, denominators: Array, otherwise: float = 0.0) -> Array:
    known = denominators > 0
    return np.where(known, numerators / np.where(known, denominators, 1.0), otherwise)


def _ratio(sums: Array) -> Array:
    return _divided(sums[..., 0], sums[..., 1])


def _f1_of_each(sums: Array) -> tuple[Array, Array]:
    """Of each class: F1, 0 where it is undefined; and targets and predictions of it together."""
    hits, predicted, actual = np.split(sums, 3, axis=-1)
    there = predicted + actual
    return _divided(2 * hits, there), there


def _macro_f1(sums: Array) -> Array:
    scores, there = _f1_of_each(sums)
    return _divided(scores.sum(axis=-1), (there > 0).sum(axis=-1).astype(np.float64))


def _macro_f1_of_all(sums: Array) -> Array:
    return np.asarray(_f1_of_each(sums)[0].mean(axis=-1))


def _mcc(sums: Array) -> Array:
    predicted, actual = np.split(sums[..., 1:], 2, axis=-1)
    total = actual.sum(axis=-1)
    covariance = sums[..., 0] * total - (predicted * actual).sum(axis=-1)
    spreads = [total**2 - (counts**2).sum(axis=-1) for counts in (predicted, actual)]
    return _divided(covariance, np.sqrt(np.maximum(spreads[0] * spreads[1], 0.0)))


def _pearson(sums: Array) -> Array:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
    return _divided(n * xy - x * y, np.sqrt(spread))


def _r2(sums: Array) -> Array:
    n, y, yy, errors = np.moveaxis(sums, -1, 0)
    spread = yy - _divided(y * y, n)
    return np.where(spread > 0, 1.0 - _divided(errors, spread), (errors == 0).astype(np.float64))


_STATISTICS: Mapping[str, Callable[[Array], Array]] = {
    "ratio": _ratio,
    "exp_ratio": lambda sums: np.exp(np.minimum(_ratio(sums), 700.0)),
    "macro_f1": _macro_f1,
    "macro_f1_of_all": _macro_f1_of_all,
    "mcc": _mcc,
    "pearson": _pearson,
    "r2": _r2,
}
