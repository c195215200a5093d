"""How many trials a pack should hold: what was measured of the base, put to the cost model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.device.memory import available_bytes, is_out_of_memory, release
from workers.pack.attempt import Attempt
from workers.pack.cost_model import MOST_TRIALS, Capacity, PackMember, plan_capacity
from workers.pack.loaded import SharedBase
from workers.pack.probe import probe
from workers.training.optimizers import adapter_bytes

_SLIGHT_CHANGE = 0.25
"""Share of the slots that a new count must differ by. The count depends on the trials present, so it changes
as they come and go, and everybody who watches the study reads of each change."""


class Slots:
    """How many trials a pack wants, and how many it takes.

    It takes more than it wants where throughput alone limits those: an order may have been sent before they
    became fewer, and a trial that waits while other workers are idle loses more than a pack that is one too
    large.

    Attributes:
        count: Trials that are wanted at once.
        most: Trials that are taken at once.
    """

    def __init__(self, count: int) -> None:
        self.count = self.most = count
        self._announced = False

    def take(self, capacity: Capacity) -> bool:
        """Takes in a new capacity.

        Returns:
            Whether the count is announced: the first one is, and later ones that differ by more than
            `_SLIGHT_CHANGE` or whose limit is not throughput.
        """
        by_throughput = capacity.limited_by == "throughput"
        change = abs(capacity.trials - self.count)
        slight = by_throughput and change <= self.count * _SLIGHT_CHANGE
        announce = not self._announced or not (slight or change == 0)
        if announce:
            self._announced, self.count = True, capacity.trials
        self.most = max(self.count, MOST_TRIALS if by_throughput else capacity.trials)
        return announce


def plan(
    base: SharedBase, attempts: Sequence[Attempt], *, most: int | None, device: torch.device
) -> Capacity:
    """The slots that pay, and sets the size of a pass to what pays. Probes the base at the first call.

    Args:
        base: With its trials on it.
        attempts: Those trials, at least one.
        most: Trials that fit together, where more were found not to.
        device: Where they train.
    """
    members = [_member(attempt) for attempt in attempts]
    if base.costs is None:
        first = attempts[0].run
        try:
            base.costs = probe(base.host, first.adapter, first.examples, most_tokens=base.passes.token_budget)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    if base.costs is None:
        release(device)
        return Capacity(
            trials=1,
            pass_tokens=members[0].longest_tokens,
            predicted_bytes=0,
            limited_by="memory",
            reason="1 trial at a time: the pass that measures memory use did not fit",
        )
    limits = [attempt.order.trials_per_worker for attempt in attempts] + [most]
    if not base.host.shares_passes:
        limits.append(1)  # passes of one trial each: nothing is gained by holding several
    adapters = sum(member.adapter_bytes for member in members)
    capacity = plan_capacity(
        base.costs.time,
        base.costs.memory,
        members=members,
        available_bytes=available_bytes(device) + adapters + base.costs.memory.base_bytes,
        most=min((limit for limit in limits if limit is not None), default=None),
    )
    base.passes.set_token_budget(capacity.pass_tokens)
    cost = base.costs.time
    if cost.per_token_s > 0:
        base.passes.overhead_tokens = cost.fixed_s / cost.per_token_s
    return capacity


def limited(trials: int, reason: str) -> Capacity:
    """No more than these, for want of memory that was tried."""
    return Capacity(
        trials=trials,
        pass_tokens=0,
        predicted_bytes=0,
        limited_by="memory",
        reason=f"{trials} at a time: {reason}",
    )


def _member(attempt: Attempt) -> PackMember:
    run = attempt.run
    lengths = [example.length for example in run.examples]
    typical = sum(lengths) / len(lengths)
    return PackMember(
        tokens_per_step=max(1, round(typical * min(run.recipe.batch_size, len(lengths)))),
        longest_tokens=max(lengths),
        adapter_bytes=adapter_bytes(
            run.adapter.trainable_parameters, run.recipe, accumulates=run.recipe.batch_size > 1
        ),
    )
