"""What a pack costs in seconds and in bytes, and from both how many trials it should hold. Pure arithmetic.

A *pass* is one shared forward and backward of the base over rows of several trials. With n padded tokens
of K trials it takes

    seconds(n, K) = fixed + per_token n + per_trial K
    bytes(n)      = base + the K adapters + bytes_per_token n + one chunk of logits

Two rules of the design, both 5 %, say when more stops being worth it:

- A pass is large enough when what one trial pays for it whatever it holds, fixed + per_trial, is at most
  5 % of its time. Its tokens per second are then within 5 % of those of a pass without end. Hence
  n >= 19 (fixed + per_trial) / per_token.
- A pack holds enough trials when one more would not raise its trained tokens per second by 5 %:

      throughput(K) = T / (fixed + per_token T + per_trial K),   T = min(K x tokens_per_step, pass_tokens)

  Once the batches of K trials fill a pass, a further one only shares it, and gains nothing.

A step from K to K + 1 trials gains 1 / K at the very most, so the second rule stops every pack at 21
trials at the latest.

Numbers are compared as fractions: a gain of exactly 5 % falls on the same side on every machine.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from search_spaces.wording import counted

FIXED_SHARE = Fraction(1, 20)
"""Largest share of one trial's pass that may go to anything but tokens, where memory allows (the design's
rule). Fixed and per-trial cost count alike, as passes of one trial alone cannot tell them apart."""

LEAST_GAIN = Fraction(1, 20)
"""Least gain in throughput for which a further trial is taken in (the design's rule)."""

MOST_TRIALS = 64
"""Of any pack, whatever is asked for and measured: a guard, should `LEAST_GAIN` ever be lowered."""

LimitedBy = Literal["throughput", "memory", "limit"]
"""What keeps one trial more out: it would gain too little, it or a pass worth its while would not fit into
memory, or the user's limit (or `MOST_TRIALS`) is reached."""

_PREFERENCE = np.array([1.0, 1.0 - 1e-9, 1.0 - 2e-9])
"""Scales of per_token, fixed and per_trial in the fit. Of costs that explain the passes equally well,
`scipy.optimize.nnls` then takes the first: it frees that one whose column promises the steepest descent."""


@dataclass(frozen=True)
class PassCost:
    """Seconds of one shared pass = `fixed_s` + `per_token_s` x padded tokens + `per_trial_s` x trials."""

    fixed_s: float
    """Launching kernels and dequantizing the base: paid once, whatever the pass holds."""
    per_token_s: float
    per_trial_s: float
    """What each trial costs beyond its tokens: the small products of its adapter, its optimizer step."""

    def __post_init__(self) -> None:
        costs = (self.fixed_s, self.per_token_s, self.per_trial_s)
        if not all(math.isfinite(cost) and cost >= 0 for cost in costs) or not any(costs):
            raise ValueError(f"costs must be finite, at least 0 and not all 0: {costs}")

    def seconds(self, tokens: int, trials: int) -> float:
        """Of a pass of so many padded tokens of so many trials."""
        return self.fixed_s + self.per_token_s * tokens + self.per_trial_s * trials


@dataclass(frozen=True)
class MemoryCost:
    """Bytes on the device that do not depend on how many trials there are."""

    base_bytes: int
    """The quantized base, and all else that is there before the first trial."""
    bytes_per_token: float
    """Activations and their gradients of one padded token in a pass. Above 0."""
    chunk_bytes: int
    """One chunk of logits and its gradient; the whole of tokens x vocabulary is never held."""

    def __post_init__(self) -> None:
        if self.base_bytes < 0 or self.chunk_bytes < 0 or not 0 < self.bytes_per_token < math.inf:
            raise ValueError(f"bytes must be at least 0, and those per token above it: {self}")


@dataclass(frozen=True)
class PackMember:
    """What one trial asks of its pack."""

    tokens_per_step: int
    """Padded tokens of its effective batch, at the data's typical length: the most it brings to a pass."""
    longest_tokens: int
    """Of its longest row. A row is not divided, so every pass must be able to hold it."""
    adapter_bytes: int
    """As `workers.training.optimizers.adapter_bytes` counts them."""

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1 or self.longest_tokens < 1 or self.adapter_bytes < 0:
            raise ValueError(f"a trial has at least one token, and no negative bytes: {self}")


@dataclass(frozen=True)
class Capacity:
    """How many trials a pack should hold, and how large its passes may be."""

    trials: int
    """At least 1. May be less than are there: they go on, and nobody is taken in until some have ended."""
    pass_tokens: int
    """Most padded tokens in a pass, with `trials` in the pack or those that are there, if they are more."""
    predicted_bytes: int
    """Of `trials` such trials and a pass of their batches at typical length, within `pass_tokens`."""
    limited_by: LimitedBy
    reason: str
    """Why not one trial more, in one sentence with numbers."""


def predict_bytes(memory: MemoryCost, *, adapters: Sequence[int], pass_tokens: int) -> int:
    """Peak bytes on the device of a pack.

    Args:
        adapters: Bytes of each trial, as `PackMember.adapter_bytes`.
        pass_tokens: Padded tokens of its largest pass.
    """
    activations = math.ceil(Fraction(memory.bytes_per_token) * pass_tokens)
    return memory.base_bytes + memory.chunk_bytes + sum(adapters) + activations


def fit_pass_cost(
    samples: Sequence[tuple[float, int, float]], weights: Sequence[float] | None = None
) -> PassCost:
    """The costs that explain measured passes best, none of them negative.

    Least squares of the *relative* error under non-negative costs (Lawson and Hanson 1974, chapter 23): a
    clock's noise grows with what it measures, and the small passes, which tell the fixed cost, would not
    count otherwise. Passes of the same size enter as their median, so that one slow outlier does no harm.

    Where samples cannot tell two costs apart, the first of these explains the time: tokens, the fixed cost,
    trials. So two passes with tokens in proportion to trials, or of one trial each, give `fixed_s` and
    `per_token_s`; and passes all of one size say that nothing is gained by larger ones.

    Args:
        samples: Padded tokens, trials and seconds of a pass; at least two.
        weights: What each sample's squared error counts, above 0; None: all alike. Passes of the same size
            and weight are one sample.

    Raises:
        ValueError: Fewer than two samples, or one that is not positive.
    """
    if len(samples) < 2:
        raise ValueError(f"at least two passes must be measured, not {len(samples)}")
    by_size: defaultdict[tuple[float, int, float], list[float]] = defaultdict(list)
    for (tokens, trials, seconds), weight in zip(samples, weights or [1.0] * len(samples), strict=True):
        if min(tokens, trials) < 1 or not 0 < seconds < math.inf or max(tokens, trials) / seconds == math.inf:
            raise ValueError(f"no pass has {tokens} tokens of {trials} trials in {seconds} s")
        by_size[tokens, trials, weight].append(seconds)
    sizes = np.array([(tokens, 1, trials) for tokens, trials, _ in by_size])
    medians = np.array([[statistics.median(seconds)] for seconds in by_size.values()])
    relative = sizes / medians
    scale = relative.max(axis=0) / _PREFERENCE
    root = np.sqrt([weight for _, _, weight in by_size])
    solution, _residual = nnls(relative / scale * root[:, None], root)
    per_token, fixed, per_trial = (solution / scale).tolist()
    return PassCost(fixed, per_token, per_trial)


def plan_capacity(
    pass_cost: PassCost,
    memory: MemoryCost,
    *,
    members: Sequence[PackMember],
    available_bytes: int,
    most: int | None,
) -> Capacity:
    """How many trials like the average of `members` train together best, and in passes of what size.

    Trials are added from one on, while the next fits into memory, gains at least 5 % and is within the limit.
    More memory and a larger fixed cost never make it fewer.

    Args:
        members: The trials that are there or about to be; at least one.
        available_bytes: For everything in `predict_bytes`, the base included.
        most: Trials that the user allows; None: as many as pay.
    """
    if not members:
        raise ValueError("a capacity is planned for at least one trial")
    if most is not None and most < 1:
        raise ValueError(f"at least one trial must be allowed, not {most}")
    plan = _Plan(pass_cost, memory, members, available_bytes)
    trials = 1
    while (stop := plan.stop(trials, min(most or MOST_TRIALS, MOST_TRIALS))) is None:
        trials += 1
    # Trials that are there already keep their bytes, even when they are more than are wanted.
    pass_tokens = plan.pass_tokens(max(trials, len(members)))
    usual_tokens = min(pass_tokens, max(plan.longest, math.ceil(trials * plan.tokens_per_step)))
    return Capacity(trials, pass_tokens, plan.predicted_bytes(trials, usual_tokens), *stop)


class _Plan:
    """Packs of K trials, each like the average of those there are."""

    def __init__(
        self, cost: PassCost, memory: MemoryCost, members: Sequence[PackMember], available_bytes: int
    ) -> None:
        self.tokens_per_step = Fraction(sum(member.tokens_per_step for member in members), len(members))
        self.longest = max(member.longest_tokens for member in members)
        self._bytes_per_trial = Fraction(sum(member.adapter_bytes for member in members), len(members))
        self._fixed, self._per_token = Fraction(cost.fixed_s), Fraction(cost.per_token_s)
        self._per_trial = Fraction(cost.per_trial_s)
        self._memory, self._available = memory, available_bytes
        if self._per_token:
            overhead = self._fixed + self._per_trial
            enough = overhead * (1 - FIXED_SHARE) / (FIXED_SHARE * self._per_token)
        else:
            enough = MOST_TRIALS * self.tokens_per_step  # more than anybody brings
        self.efficient_tokens = max(self.longest, math.ceil(enough))

    def predicted_bytes(self, trials: int, tokens: int) -> int:
        return predict_bytes(
            self._memory, adapters=(math.ceil(trials * self._bytes_per_trial),), pass_tokens=tokens
        )

    def memory_tokens(self, trials: int) -> int:
        """Tokens in the largest pass that fits beside so many adapters; below 0 when not even those do."""
        left = self._available - self.predicted_bytes(trials, 0)
        return math.floor(left / Fraction(self._memory.bytes_per_token))

    def pass_tokens(self, trials: int) -> int:
        return max(self.longest, min(self.efficient_tokens, self.memory_tokens(trials)))

    def throughput(self, trials: int, pass_tokens: int) -> Fraction:
        """Trained tokens per second."""
        tokens = min(trials * self.tokens_per_step, Fraction(pass_tokens))
        return tokens / (self._fixed + self._per_token * tokens + self._per_trial * trials)

    def stop(self, trials: int, most: int) -> tuple[LimitedBy, str] | None:
        """What keeps the pack from holding one trial more, and why in words; None: nothing does."""
        more = trials + 1
        if self.memory_tokens(more) < self.longest:
            return "memory", self._too_many_bytes(trials)
        gain = self._gain(trials, self.pass_tokens(trials), self.pass_tokens(more))
        if gain < LEAST_GAIN:
            found = (
                f"{_trials(more)} would train {float(self.throughput(more, self.pass_tokens(more))):,.0f}"
                f" tokens/s, {_percent(abs(gain))} {'less' if gain < 0 else 'more'} than {trials},"
                f" but each further trial must bring {_percent(LEAST_GAIN)}"
            )
            unbounded = self._gain(trials, self.efficient_tokens, self.efficient_tokens)
            if unbounded < LEAST_GAIN:
                return "throughput", f"{found}."
            return "memory", (
                f"{found}; it would bring {_percent(unbounded)} if passes could be larger than the"
                f" {self.pass_tokens(more):,} tokens that fit into {_size(self._available)}."
            )
        if trials >= most:
            return (
                "limit",
                f"{_trials(most)} may train at once, which is the limit; one more would gain"
                f" {_percent(gain)}.",
            )
        return None

    def _gain(self, trials: int, pass_tokens: int, more_pass_tokens: int) -> Fraction:
        """By what share one trial more raises the throughput; below 0 where it lowers it."""
        return self.throughput(trials + 1, more_pass_tokens) / self.throughput(trials, pass_tokens) - 1

    def _too_many_bytes(self, trials: int) -> str:
        if self.memory_tokens(trials) < self.longest:  # which only the first trial is let off
            fault = "1 trial is not expected to fit, but is tried anyway"
        else:
            trials += 1
            fault = f"{_trials(trials)} do not fit"
        return (
            f"{fault}: {_size(self.predicted_bytes(trials, self.longest))} with a pass of the longest row,"
            f" {self.longest:,} tokens, but {_size(self._available)} are available."
        )


def _trials(count: int) -> str:
    return counted(count, "trial")


def _percent(share: Fraction) -> str:
    """Cut, not rounded, so that what is under 5 % reads so."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
