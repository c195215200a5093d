"""The training that a study would do, from its definition and its rows. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from search_spaces.definition import StudyDefinition
from search_spaces.range_tests.derivation import derive
from search_spaces.trial_length import TrainingPlan, warmup_steps
from service.plans import schemas
from service.plans.lengths import Length, Rows, field_values, lengths_of, longest, shortest, trial_fields
from service.plans.rungs import pruning_rungs, shared_rungs
from service.plans.schemas import Amount, RungsPlan, Span, StepsPlan, TrialsPlan

SHOWN_RUNGS = 20


def plan_trials(definition: StudyDefinition) -> TrialsPlan:
    """How many trials there are."""
    search = definition.search
    range_test = 0
    if search.learning_rate_range_test is not None:
        range_test = derive(definition, definition.name).search.total_trials
    repeats = 0
    if definition.repeats is not None:
        repeats = min(definition.repeats.top_k, search.total_trials) * definition.repeats.seeds
    is_grid = search.algorithm == "grid"
    return TrialsPlan(
        algorithm=search.algorithm,
        search=search.total_trials,
        space_size=search.space.grid_size() if is_grid else search.space.size(),
        range_test=range_test,
        repeats=repeats,
        total=search.total_trials + range_test + repeats,
    )


def trial_lengths(definition: StudyDefinition, trials: int, rows: Rows) -> tuple[list[Length], bool]:
    """For a grid, the lengths of its trials, and True; else of every trial there may be, and False."""
    fields, exact = trial_fields(definition, trials)
    return lengths_of(fields, rows, definition.evaluation.every_examples), exact


def plan_training(
    definition: StudyDefinition, trials: TrialsPlan, lengths: Sequence[Length], *, exact: bool, rows: Rows
) -> schemas.TrainingPlan:
    """What the search, the range test and the repeats train and evaluate, if nothing ends early.

    Args:
        definition: The study's.
        trials: From `plan_trials`.
        lengths: From `trial_lengths`.
        exact: Likewise.
        rows: That they are lengths over.
    """
    low, high = shortest(lengths), longest(lengths)
    epochs = [length.plan.examples for length in lengths]

    sweeps = _sweeps(definition, rows)
    search = _sum(lengths, rows) if exact else _some(lengths, trials.search, rows)
    range_test = _sum(sweeps, rows) if sweeps else None
    repeats = _some(lengths, trials.repeats, rows) if trials.repeats else None
    return schemas.TrainingPlan(
        examples_per_epoch=Span(at_least=min(epochs), at_most=max(epochs)),
        estimated=rows.estimated,
        shortest=_view(low),
        longest=_view(high),
        sweeps=[_view(sweep) for sweep in sweeps],
        search=search,
        range_test=range_test,
        repeats=repeats,
        total=_together([stage for stage in (search, range_test, repeats) if stage is not None]),
        steps=list(_steps(lengths)),
        rungs=_rungs(definition, lengths, high),
    )


def _sweeps(definition: StudyDefinition, rows: Rows) -> list[Length]:
    """The range test's, each to its last step."""
    test = definition.search.learning_rate_range_test
    if test is None:
        return []
    derived = derive(definition, definition.name)
    corners, _ = trial_fields(derived, derived.search.total_trials)
    found = []
    for corner in corners:
        cut = rows.known_length(corner.max_length)
        plan = TrainingPlan(rows.per_epoch[cut], corner.batch_size, corner.epochs, test.steps)
        fields = replace(corner, epochs=plan.epoch(test.steps))
        tokens = round(plan.total_examples * rows.tokens[cut])
        found.append(Length(fields=fields, plan=plan, evaluations=0, tokens=tokens))
    return found


def _sum(lengths: Sequence[Length], rows: Rows) -> Amount:
    """Trials of just these lengths."""
    return _amount(lengths, rows, lambda values: Span(at_least=sum(values), at_most=sum(values)))


def _some(lengths: Sequence[Length], trials: int, rows: Rows) -> Amount:
    """So many trials, each of one of these lengths."""
    return _amount(
        lengths, rows, lambda values: Span(at_least=trials * min(values), at_most=trials * max(values))
    )


def _amount(lengths: Sequence[Length], rows: Rows, total: Callable[[Sequence[int]], Span]) -> Amount:
    return Amount(
        examples=total([length.plan.total_examples for length in lengths]),
        tokens=total([length.tokens for length in lengths]),
        evaluation_examples=total([length.evaluations * rows.evaluation for length in lengths]),
    )


def _together(stages: Sequence[Amount]) -> Amount:
    def total(spans: Sequence[Span]) -> Span:
        return Span(
            at_least=sum(span.at_least for span in spans), at_most=sum(span.at_most for span in spans)
        )

    return Amount(
        examples=total([stage.examples for stage in stages]),
        tokens=total([stage.tokens for stage in stages]),
        evaluation_examples=total([stage.evaluation_examples for stage in stages]),
    )


def _view(length: Length) -> schemas.TrialLength:
    return schemas.TrialLength(
        batch_size=length.fields.batch_size,
        epochs=length.fields.epochs,
        max_length=length.fields.max_length,
        steps=length.plan.total_steps,
        examples=length.plan.total_examples,
        tokens=length.tokens,
        evaluations=length.evaluations,
    )


def _steps(lengths: Sequence[Length]) -> list[StepsPlan]:
    found = []
    by_size = sorted(lengths, key=lambda length: length.fields.batch_size)
    for batch_size, group in itertools.groupby(by_size, key=lambda length: length.fields.batch_size):
        same = list(group)
        steps = [length.plan.total_steps for length in same]
        warmup = [warmup_steps(length.fields.warmup_ratio, length.plan.total_steps) for length in same]
        found.append(
            StepsPlan(
                batch_size=batch_size,
                steps=Span(at_least=min(steps), at_most=max(steps)),
                warmup_steps=Span(at_least=min(warmup), at_most=max(warmup)),
            )
        )
    return found


def _rungs(definition: StudyDefinition, lengths: Sequence[Length], high: Length) -> RungsPlan:
    every = definition.evaluation.every_examples
    parameter = definition.search.space.parameters.get("batch_size")
    is_grid = definition.search.algorithm == "grid"
    size = parameter.size if parameter is not None else 1
    complete = is_grid or (size is not None and len(field_values(definition, "batch_size")) >= size)
    shared = shared_rungs([length.plan for length in lengths], every, all_batch_sizes=complete)
    looks = pruning_rungs(definition.pruning, high.plan, every)
    return RungsPlan(
        every_examples=every,
        shared=(shared or [])[:SHOWN_RUNGS],
        shared_count=None if shared is None else len(shared),
        pruning_algorithm=definition.pruning.algorithm,
        pruning=looks[:SHOWN_RUNGS],
        pruning_count=len(looks),
    )
