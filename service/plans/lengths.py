"""How long the trials of a study are, from its definition and its number of rows. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.data_report import DataReport
from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.parameters.choices import Choice
from search_spaces.recipe import Recipe
from search_spaces.trial_length import MOST_RUNGS, TrainingPlan, count_rungs, warmup_steps

MOST_VALUES = 16
"""Of a field with more values only the smallest and the largest are looked at. Between them a trial's length
differs by what a fraction of an epoch is rounded up to, if at all."""

MOST_POINTS = 10_000
"""Of a space that is gone through point by point."""


@dataclass(frozen=True)
class LengthFields:
    """The fields of a recipe that say how long its trial is."""

    batch_size: int
    epochs: float
    max_length: int
    warmup_ratio: float


@dataclass(frozen=True)
class Rows:
    """The rows that trials train and evaluate on."""

    per_epoch: Mapping[int, int]
    """Training examples of an epoch, by max_length; at least one each."""
    tokens: Mapping[int, float]
    """Mean tokens of one of them, likewise."""
    evaluation: int
    estimated: bool
    """Whether the rows after those that were tokenised were taken to be like them."""

    def known_length(self, max_length: int) -> int:
        """The same, or of many lengths, of which the report knows the ends alone, the next longer one that it
        knows: that cuts no more rows away."""
        return min(known for known in self.per_epoch if known >= max_length)


@dataclass(frozen=True)
class Length:
    """One trial that nothing ends early."""

    fields: LengthFields
    plan: TrainingPlan
    evaluations: int
    tokens: int

    @property
    def warmup_steps(self) -> int:
        return warmup_steps(self.fields.warmup_ratio, self.plan.total_steps)


def field_values(definition: StudyDefinition, field: str) -> list[Any]:
    """The values that a recipe field takes in a study: all of them, or of many the ends.

    A field that is searched under a condition also keeps its fixed value, where the condition does not hold.
    """
    fixed = definition.recipe.get(field, getattr(Recipe(), field))
    parameter = definition.search.space.parameters.get(field)
    if parameter is None:
        return [fixed]
    size = parameter.size
    if size is not None and size <= MOST_VALUES:
        values = [parameter.value_at(index) for index in range(size)]
    elif isinstance(parameter, Choice):
        values = [min(parameter.choices, key=_order), max(parameter.choices, key=_order)]
    else:
        values = [parameter.min, parameter.last]
    return values if not parameter.when or fixed in values else [*values, fixed]


def trial_fields(definition: StudyDefinition, trials: int) -> tuple[list[LengthFields], bool]:
    """What decides the length of the search's trials.

    Args:
        definition: The study's.
        trials: Of its search.

    Returns:
        For a grid, and a search of a whole space: of every trial, and True. Else: of every combination that a
        trial may be, and False.
    """
    defaults = Recipe()
    fixed = {name: definition.recipe.get(name, getattr(defaults, name)) for name in _FIELDS}
    space = definition.search.space
    points: Iterator[dict[str, Any]] | None = None
    if definition.search.algorithm == "grid":
        points = itertools.islice(space.grid_points(), trials)
    elif space.size() == trials <= MOST_POINTS:
        points = space.points()  # all there are, whatever their order
    if points is not None:
        return [_fields(definition, {**fixed, **_only_ours(point)}) for point in points], True
    values = [field_values(definition, name) for name in _FIELDS]
    values[-1] = sorted({min(values[-1]), max(values[-1])})  # the share of warm-up changes no length
    combinations = (
        dict(zip(_FIELDS, combination, strict=True)) for combination in itertools.product(*values)
    )
    return list(dict.fromkeys(_fields(definition, one) for one in combinations)), False


def rung_fault(definition: StudyDefinition, report: DataReport | None) -> Fault | None:
    """The fault of trials with too many rungs, as far as the rows that were counted show it."""
    every = definition.evaluation.every_examples
    if every is None or report is None or report.train is None:
        return None
    train = report.train
    read = max((cut.usable_rows for cut in train.by_length), default=0)
    rows = read if train.rows is None or not train.rows_read else _scaled(read, train.rows, train.rows_read)
    epochs = max(map(float, field_values(definition, "epochs")))
    sizes = map(int, field_values(definition, "batch_size"))
    most = max(count_rungs(TrainingPlan(max(1, rows), size, epochs), every) for size in sizes)
    if most <= MOST_RUNGS:
        return None
    return Fault(
        path="evaluation.every_examples",
        value=every,
        message=f"makes at least {most:,} evaluations of the longest trial; evaluate less often",
        allowed=f"at most {MOST_RUNGS:,} evaluations of a trial",
    )


def rows_of(report: DataReport) -> tuple[Rows | None, str | None]:
    """The rows of a data report, or why they cannot be told."""
    train, evaluation = report.train, report.eval
    if train is None or evaluation is None:
        return None, f"the {'train' if train is None else 'eval'} data could not be read"
    for name, split in (("train", train), ("eval", evaluation)):
        if split.rows is None:
            return (
                None,
                f"the {name} data has more than {split.rows_counted:,} rows, or not all rows could be read",
            )
        if not all(cut.usable_rows for cut in split.by_length):
            return None, f"the {name} data has no usable row at one of the values of max_length"
    per_epoch, tokens = {}, {}
    for cut in train.by_length:
        per_epoch[cut.max_length] = max(1, _scaled(cut.usable_rows, train.rows or 0, train.rows_read))
        tokens[cut.max_length] = cut.tokens / cut.usable_rows
    own = evaluation.by_length[0]
    return Rows(
        per_epoch=per_epoch,
        tokens=tokens,
        evaluation=_scaled(own.usable_rows, evaluation.rows or 0, evaluation.rows_read),
        estimated=train.sampled or evaluation.sampled,
    ), None


def lengths_of(fields: Iterable[LengthFields], rows: Rows, every_examples: int | None) -> list[Length]:
    """The trials' lengths, in the order of `fields`."""
    known: dict[LengthFields, Length] = {}
    found = []
    for one in fields:
        if one not in known:
            known[one] = _length(one, rows, every_examples)
        found.append(known[one])
    return found


def shortest(lengths: Sequence[Length]) -> Length:
    return min(lengths, key=lambda length: (length.plan.total_examples, length.plan.total_steps))


def longest(lengths: Sequence[Length]) -> Length:
    return max(lengths, key=lambda length: (length.plan.total_examples, length.plan.total_steps))


def _order(value: Any) -> tuple[bool, Any]:
    return (value is not None, value)


_FIELDS = ("batch_size", "epochs", "max_length", "warmup_ratio")


def _only_ours(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name in _FIELDS}


def _fields(definition: StudyDefinition, values: Mapping[str, Any]) -> LengthFields:
    return LengthFields(
        batch_size=int(values["batch_size"]),
        epochs=float(values["epochs"]),
        max_length=values["max_length"] or definition.data.max_length,
        warmup_ratio=float(values["warmup_ratio"]),
    )


def _scaled(usable: int, rows: int, read: int) -> int:
    return usable if rows == read else round(rows * usable / read)


def _length(fields: LengthFields, rows: Rows, every_examples: int | None) -> Length:
    cut = rows.known_length(fields.max_length)
    plan = TrainingPlan(rows.per_epoch[cut], fields.batch_size, fields.epochs)
    return Length(
        fields=fields,
        plan=plan,
        evaluations=count_rungs(plan, every_examples),
        tokens=round(plan.total_examples * rows.tokens[cut]),
    )
