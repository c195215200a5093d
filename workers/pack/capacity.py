"""How many trials a pack should hold: what was learnt of passes on the base, put to the cost model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from search_spaces.wording import counted
from workers.contract import Event, PackCapacity
from workers.device.memory import allocated_bytes, available_bytes, is_device_fault, peak_bytes
from workers.pack.attempt import Attempt
from workers.pack.cost_model import MOST_TRIALS, Capacity, plan_capacity
from workers.pack.loaded import SharedBase

_log = logging.getLogger(__name__)

_SLIGHT_CHANGE = 0.25
"""Share of the slots that a new count must differ by. The count depends on the trials present, so it changes
as they come and go, and everybody who watches the study reads of each change."""

_FIRST_TRIALS = 4
"""At once while no pass has been timed. They are there before the first pass ends; more follow a few passes
later, where they pay."""

_SEEN = 64
"""Passes after which slots are planned anew, and before at each power of two: the first passes tell most."""


class Slots:
    """How many trials a pack wants, and how many it takes.

    It takes more than it wants where throughput alone limits those: an order may have been sent before they
    became fewer, and a trial that waits while other workers are idle loses more than a pack that is one too
    large.

    Attributes:
        count: Trials that are wanted at once.
        most: Trials that are taken at once.
    """

    def __init__(self, wanted: int | None, emit: Callable[[Event], object], device: torch.device) -> None:
        """
        Args:
            wanted: As many trials, as far as they fit; None: as many as pay.
            emit: Receives a `PackCapacity` whenever the count changes, and what was learnt of passes.
            device: Where they train.
        """
        self._wanted = wanted
        self._emit = emit
        self._device = device
        self.begin_anew()

    def begin_anew(self) -> None:
        """As if nothing had been announced: for the next study."""
        self.count = self.most = self._wanted or 1
        self._announced = False

    def learn(self, base: SharedBase, attempts: Sequence[Attempt]) -> None:
        """Takes in the passes since the last time, and plans anew now and then."""
        samples = base.passes.meter.take()
        if self._wanted is not None:
            return
        adapters = sum(attempt.member.adapter_bytes for attempt in attempts)
        for sample in samples:
            base.costs.learn(sample, adapter_bytes=adapters)
            passes = base.costs.passes
            is_power = passes & (passes - 1) == 0
            if is_power or passes % _SEEN == 0:
                self.plan(base, attempts)
            if is_power and base.costs.key is not None:
                self._emit(base.costs.to_keep(base.costs.key))

    def plan(self, base: SharedBase, attempts: Sequence[Attempt]) -> None:
        """Computes the slots again, and announces a change."""
        if not attempts:
            return
        if self._wanted is not None:
            trials = min(self._wanted, base.limit or self._wanted)
            if trials != self.count:
                self.announce(limited(trials, f"no more of the {self._wanted} requested trials fit"))
            return
        try:
            capacity = plan(base, attempts, most=base.limit, device=self._device)
        except Exception as error:
            if is_device_fault(error):
                raise
            _log.exception("what passes cost cannot be made out, so the pack's size stays the same")
            return
        for attempt in attempts:
            if attempt.predicted_memory_bytes is None:
                attempt.predicted_memory_bytes = capacity.predicted_bytes or None
        self.announce(capacity)

    def announce(self, capacity: Capacity) -> None:
        """Takes in a new capacity.

        The first one is announced, and later ones that differ by more than `_SLIGHT_CHANGE` or whose limit is
        not throughput.
        """
        by_throughput = capacity.limited_by == "throughput"
        change = abs(capacity.trials - self.count)
        slight = by_throughput and change <= self.count * _SLIGHT_CHANGE
        announce = not self._announced or not (slight or change == 0)
        if announce:
            self._announced, self.count = True, capacity.trials
        self.most = max(self.count, MOST_TRIALS if by_throughput else capacity.trials)
        if announce:
            self._emit(
                PackCapacity(
                    slots=capacity.trials,
                    reason=capacity.reason,
                    predicted_bytes=capacity.predicted_bytes or None,
                    measured_bytes=peak_bytes(self._device),
                )
            )


def plan(
    base: SharedBase, attempts: Sequence[Attempt], *, most: int | None, device: torch.device
) -> Capacity:
    """The slots that pay, and sets the size of a pass to what pays.

    Args:
        base: With its trials on it.
        attempts: Those trials, at least one.
        most: Trials that fit together, where more were found not to.
        device: Where they train.
    """
    costs = base.costs.present()
    limits = [attempt.order.trials_per_worker for attempt in attempts] + [most]
    if not base.host.shares_passes:
        limits.append(1)  # passes of one trial each: nothing is gained by holding several
    allowed = min((limit for limit in limits if limit is not None), default=MOST_TRIALS)
    first = not costs.timed and allowed > _FIRST_TRIALS
    capacity = plan_capacity(
        costs.time,
        costs.memory,
        members=[attempt.member for attempt in attempts],
        available_bytes=available_bytes(device) + allocated_bytes(device),
        most=_FIRST_TRIALS if first else allowed,
    )
    base.passes.set_token_budget(capacity.pass_tokens)
    if costs.time.per_token_s > 0:
        base.passes.overhead_tokens = costs.time.fixed_s / costs.time.per_token_s
    if not costs.timed and capacity.limited_by != "memory":
        words = f"{counted(capacity.trials, 'trial')} at once, until passes have been timed."
        capacity = replace(capacity, reason=words)
    return capacity if costs.weighed else replace(capacity, predicted_bytes=0)


def limited(trials: int, reason: str) -> Capacity:
    """No more than these, for want of memory that was tried."""
    return Capacity(
        trials=trials,
        pass_tokens=0,
        predicted_bytes=0,
        limited_by="memory",
        reason=f"{trials} at a time: {reason}",
    )
