"""What is decided for a study before its first trial: narrowed bounds, and what earlier studies contribute.

It is decided once, stored with the study and never changed: suggestions depend on it, so a study that is
resumed after a crash must find it unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from search_spaces.values.numbers import Real


class PriorTrial(BaseModel):
    """An earlier study's result, given to the sampler as if it were of this one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: Mapping[str, Any]
    """Every active parameter of this study's space, as recipe values."""
    value: Real
    """The objective."""


class Preparation(BaseModel):
    """Stored as `model_dump(mode="json")`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate_bounds: tuple[Real, Real] | None = None
    """The bounds to which a range test narrowed (or, with `widen`, moved) the learning rate."""
    enqueued: tuple[Mapping[str, Any], ...] = ()
    """Points of the space, as recipe values, that the first trials evaluate, in this order."""
    prior: tuple[PriorTrial, ...] = Field(default=())
    fingerprints: Mapping[str, str] = Field(default_factory=dict)
    """Of a schedule's sweep: `model`, `data.train`, `data.eval` -> what identifies its content. Without those
    that nobody can tell."""
    evaluated: tuple[str, ...] = ()
    """`configuration_digest`s of points of the prepared space that earlier sweeps of the schedule have
    evaluated where the numbers mean the same. They are not suggested."""
    evaluated_basis: str | None = None
    """What `evaluated` was worked out for: equal for sweeps of which the later may build on the earlier."""
    notes: tuple[str, ...] = ()
    """What was done and what was left out, in sentences."""


NOTHING = Preparation()
"""The preparation of a study without any."""
