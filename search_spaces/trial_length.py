"""How long a trial is: optimizer steps, training examples, warm-up and rungs. Pure.

Workers train by it and plans are made of it, so what a plan says is what a trial does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

MOST_RUNGS = 10_000
"""Of a trial. Each is a row in two databases, and a pruner compares those of all trials."""


@dataclass(frozen=True)
class TrainingPlan:
    """The arithmetic of a trial's length, the same as `transformers.Trainer`'s."""

    examples: int
    """Examples in one epoch."""
    batch_size: int
    """Effective batch, in examples."""
    epochs: float
    steps: int | None = None
    """Optimizer steps of the trial, over as many epochs as they take; None: those of `epochs`."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch; the last one may see a partial batch."""
        return math.ceil(self.examples / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the trial; a fraction of an epoch is rounded up to a whole step."""
        return math.ceil(self.epochs * self.steps_per_epoch) if self.steps is None else self.steps

    @property
    def total_examples(self) -> int:
        """Training examples the trial sees, repeats counted."""
        return self.examples_seen(self.total_steps)

    def examples_seen(self, steps: int) -> int:
        """Training examples seen after `steps` optimizer steps."""
        epochs, steps_in_epoch = divmod(steps, self.steps_per_epoch)
        return epochs * self.examples + min(steps_in_epoch * self.batch_size, self.examples)

    def steps_to_see(self, examples: int) -> int:
        """Optimizer steps after which at least `examples` training examples have been seen."""
        epochs, rest = divmod(examples, self.examples)
        return epochs * self.steps_per_epoch + math.ceil(rest / self.batch_size)

    def epoch(self, steps: int) -> float:
        """Epochs done after `steps` optimizer steps."""
        return steps / self.steps_per_epoch


def warmup_steps(warmup_ratio: float, total_steps: int) -> int:
    """Optimizer steps spent warming up, as `transformers.TrainingArguments.get_warmup_steps` counts them."""
    return math.ceil(total_steps * warmup_ratio)


def rungs(plan: TrainingPlan, every: int | None) -> Iterator[int]:
    """The rungs at which a trial reports, ascending; the last is the trial's total.

    A step that crosses several multiples of `every` makes one report, at the highest.

    Args:
        plan: The trial's.
        every: `evaluation.every_examples`; None: at the end alone.
    """
    total, reached = plan.total_examples, 0
    while every is not None:
        seen = plan.examples_seen(plan.steps_to_see(reached + every))
        reached = seen // every * every
        if seen >= total:
            break
        yield reached
    yield total


def count_rungs(plan: TrainingPlan, every: int | None) -> int:
    """How many `rungs` there are, in time that does not grow with their number."""
    if every is None:
        return 1
    before_last = plan.total_steps - 1
    if plan.batch_size <= every:  # no step crosses two multiples
        return plan.examples_seen(before_last) // every + 1
    # Every whole batch crosses one at least; a smaller one, at the end of an epoch, may not.
    missed, partial = 0, plan.examples % plan.batch_size
    if 0 < partial < every:
        epochs, size = before_last // plan.steps_per_epoch, plan.examples
        crossed = _floor_sum(epochs, every, size, size) - _floor_sum(epochs, every, size, size - partial)
        missed = epochs - crossed
    return before_last - missed + 1


def _floor_sum(terms: int, divisor: int, step: int, start: int) -> int:
    """The sum of `(step * i + start) // divisor` for i from 0 to `terms` - 1, as Euclid's algorithm goes.

    Source: Graham, Knuth and Patashnik, "Concrete Mathematics", section 3.5.
    """
    total = 0
    while terms:
        total += (terms - 1) * terms // 2 * (step // divisor) + terms * (start // divisor)
        step, start = step % divisor, start % divisor
        terms, start = divmod(step * terms + start, divisor)
        divisor, step = step, divisor
    return total
