"""Warnings about the lengths of a study's trials. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search_spaces.definition import StudyDefinition
from search_spaces.pruning.specs import NoPruning
from search_spaces.wording import counted
from service.plans.lengths import Length, Rows, longest, shortest
from service.plans.rungs import pruning_rungs
from service.plans.schemas import PlanWarning, warning

FEW_STEPS = 10


def training_warnings(
    definition: StudyDefinition, lengths: Sequence[Length], rows: Rows
) -> Iterator[PlanWarning]:
    """What the trials' lengths show."""
    too_large = sorted(
        {one.fields.batch_size for one in lengths if one.fields.batch_size > one.plan.examples}
    )
    if too_large:
        least = min(rows.per_epoch.values())
        yield warning(
            "batch_larger_than_data",
            f"Batch size {_listed(too_large)} is larger than the training data ({counted(least, 'row')}), so"
            " an epoch is a single step and such batch sizes make no difference.",
            batch_sizes=too_large,
            rows=least,
        )
    yield from _step_warnings(lengths)
    low = shortest(lengths)
    evaluated = low.evaluations * rows.evaluation
    if evaluated > low.plan.total_examples:
        work = evaluated / 3 / (evaluated / 3 + low.plan.total_examples)
        yield warning(
            "evaluation_heavy",
            f"The shortest trial trains on {counted(low.plan.total_examples, 'example')} and evaluates"
            f" {evaluated:,} ({counted(low.evaluations, 'rung')} of {counted(rows.evaluation, 'row')}). That"
            f" is about {work:.0%} of its work, because evaluating a row costs a third of training on it."
            " Evaluate less often, or set data.max_eval_examples.",
            train_examples=low.plan.total_examples,
            eval_examples=evaluated,
            rungs=low.evaluations,
        )
    yield from _pruning_warnings(definition, lengths)


def _step_warnings(lengths: Sequence[Length]) -> Iterator[PlanWarning]:
    fewest = min(lengths, key=lambda one: one.plan.total_steps)
    steps, batch = fewest.plan.total_steps, fewest.fields.batch_size
    stuck = sorted({one.fields.batch_size for one in lengths if one.warmup_steps >= one.plan.total_steps})
    if stuck:
        still = [one for one in lengths if one.warmup_steps and one.plan.total_steps == 1]
        effect = "; a trial with one step then trains at rate 0, so it learns nothing" if still else ""
        yield warning(
            "warm_up_never_ends",
            f"With batch size {_listed(stuck)} warm-up can take all steps of a trial, which then ends before"
            f" it reaches the learning rate{effect}.",
            batch_sizes=stuck,
        )
    if steps == 1:
        yield warning(
            "one_step",
            f"With batch size {batch} a trial has only one optimizer step.",
            batch_size=batch,
            steps=1,
        )
    elif steps < FEW_STEPS:
        yield warning(
            "few_steps",
            f"With batch size {batch} a trial can have only {steps} optimizer steps,"
            f" {fewest.warmup_steps} of them for warm-up: too few for a learning-rate schedule.",
            batch_size=batch,
            steps=steps,
            warmup_steps=fewest.warmup_steps,
        )


def _pruning_warnings(definition: StudyDefinition, lengths: Sequence[Length]) -> Iterator[PlanWarning]:
    pruning, every = definition.pruning, definition.evaluation.every_examples
    if isinstance(pruning, NoPruning):
        return
    low, high = shortest(lengths).plan, longest(lengths).plan
    if not pruning_rungs(pruning, high, every):
        end = counted(high.total_examples, "example")
        message = f"No trial is ever pruned: the longest ends at {end}, before"
    elif not pruning_rungs(pruning, low, every):
        end = counted(low.total_examples, "example")
        message = f"The shortest trials are never pruned: they end at {end}, before"
    else:
        return
    yield warning(
        "never_pruned",
        f"{message} {pruning.algorithm} first judges a trial.",
        shortest_examples=low.total_examples,
        longest_examples=high.total_examples,
    )


def _listed(numbers: Sequence[int]) -> str:
    *others, last = [f"{number:,}" for number in numbers]
    return f"{', '.join(others)} or {last}" if others else last
