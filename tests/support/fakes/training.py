"""What a fake training comes to: fixed functions of its order, so that tests know them in advance."""

from __future__ import annotations

import math
import random
from typing import Any

from search_spaces.recipe import Recipe
from workers.contract import TrialOrder
from workers.evaluated import Evaluated

ROWS = 100


def loss_of(recipe: Recipe, rung: int) -> float:
    """Best near a learning rate of 1e-3, falling with examples seen; worse with seeds far from 42."""
    luck = 0.001 * abs(recipe.seed - 42)
    return 1.0 + abs(math.log10(recipe.learning_rate) + 3.0) + 50.0 / rung + luck


def evaluated(value: float, *, data: str = "d", rows: int = 200, noise: float = 0.0) -> Evaluated:
    """Rows whose mean is a value: some are hard and some easy, for whatever adapter."""
    dice = random.Random(value) if noise else None
    own = [0.0 if dice is None else dice.gauss(0.0, noise) for _ in range(rows)]
    hard = [math.sin(row) for row in range(rows)]
    middle = (sum(hard) + sum(own)) / rows
    sums = tuple((value + hard[row] + own[row] - middle, 1.0) for row in range(rows))
    return Evaluated(
        data=data, rows=rows, statistic="ratio", objective=sums, loss=sums, versions={"torch": "2.0"}
    )


def costs_of(recipe: Recipe) -> dict[str, Any]:
    """Seconds by epochs, memory and parameters by rank."""
    return {
        "train_seconds": 10.0 * recipe.epochs,
        "peak_memory_bytes": 250_000_000 * recipe.lora_r,
        "trainable_parameters": 1000 * recipe.lora_r,
    }


def curve_of(order: TrialOrder) -> tuple[tuple[float, float], ...]:
    """The curve of a range test: flat at 3, steepest at 1e-3 (with its rank of 8), divergent beyond 0.1."""
    assert order.rate_sweep is not None
    sweep, steepest = order.rate_sweep, math.log10(8e-3 / order.recipe.lora_r)
    curve = []
    for step in range(sweep.steps):
        rate = sweep.first * (sweep.last / sweep.first) ** (step / (sweep.steps - 1))
        falling = 2.0 / (1.0 + math.exp(-4.0 * (math.log10(rate) - steepest)))
        curve.append((rate, 3.0 - falling + (rate / 0.1) ** 2))
        if curve[-1][1] > 4.0 * curve[0][1]:
            break
    return tuple(curve)


def base_of(order: TrialOrder) -> str:
    """Model id and quantization, as `WorkerInfo.base` has them."""
    return f"{order.model.id} {order.model.quantization}"
