"""Draws that learn nothing from other trials, and depend on the trial's number and the seed alone."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from search_spaces.sampling.axes import Axes


def derive_seed(*parts: object) -> int:
    """A seed of 32 bits from anything that prints the same in every process."""
    # Not hash(): Python salts it per process.
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def draw_random(axes: Axes, *seed: object) -> dict[str, Any]:
    """A value of every parameter, each from a generator of its own: adding one changes no other."""
    return {
        name: axis.from_unit(random.Random(derive_seed(*seed, name)).random()) for name, axis in axes.items()
    }


def draw_sobol(axes: Axes, number: int, *seed: object) -> dict[str, Any]:
    """Point `number` of a scrambled Sobol sequence, each parameter one dimension, choices too.

    Source: Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points"; `scipy.stats.qmc.Sobol`.
    """
    from scipy.stats import qmc  # takes a second to import

    sequence = qmc.Sobol(len(axes), scramble=True, rng=derive_seed(*seed))
    if number:
        sequence.fast_forward(number)
    point = sequence.random(1)[0]
    return {name: axis.from_unit(float(unit)) for (name, axis), unit in zip(axes.items(), point, strict=True)}
