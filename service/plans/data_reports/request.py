"""The request for a report on a study's data and base model. Pure."""

from __future__ import annotations

import itertools

from search_spaces.data_report import AdapterShape, ComputeDtype, ReportRequest
from search_spaces.definition import StudyDefinition
from search_spaces.tasks import METRICS
from service.plans.lengths import field_values

MOST_ROWS = 20_000
"""Rows of a data set that are tokenised, some ten seconds."""


MOST_COUNTED = 1_000_000
"""Rows after those that are counted, which takes seconds."""


def report_request(
    definition: StudyDefinition, *, max_rows: int = MOST_ROWS, max_counted: int = MOST_COUNTED
) -> ReportRequest:
    """The request for a study's data and base.

    Training examples are looked at for every length that a recipe may cut them to; adapters at the lowest and
    the highest rank.
    """
    own = definition.data.max_length
    lengths = [value or own for value in field_values(definition, "max_length")]
    momentum = min(field_values(definition, "sgd_momentum"))
    quantizations = [
        value or definition.model.quantization for value in field_values(definition, "quantization")
    ]
    ranks = field_values(definition, "lora_r")
    shapes = itertools.product(
        sorted({min(ranks), max(ranks)}),
        field_values(definition, "target_modules"),
        field_values(definition, "optimizer"),
    )
    return ReportRequest(
        model=definition.model,
        task=definition.task,
        data=definition.data,
        max_lengths=tuple(dict.fromkeys(lengths)),
        quantizations=tuple(dict.fromkeys(quantizations)),
        compute_dtypes=_compute_dtypes(definition),
        adapters=tuple(
            AdapterShape(lora_r=rank, target_modules=modules, optimizer=optimizer, sgd_momentum=momentum)
            for rank, modules, optimizer in shapes
        ),
        objective=definition.objective.metric,
        constrained=tuple(name for name in definition.constraints if name in METRICS),
        generate=definition.evaluation.generate,
        class_weights=definition.recipe.get("class_weights", "none"),
        max_rows=max_rows,
        max_counted=max_counted,
    )


def path_in(definition: StudyDefinition, path: str) -> str:
    """A problem's path as the definition has it: what is at fault in a recipe may be searched."""
    field = path.removeprefix("recipe.")
    searched = field != path and field in definition.search.space.parameters
    return f"search.space.{field}" if searched else path


def _compute_dtypes(definition: StudyDefinition) -> tuple[ComputeDtype, ...]:
    """The one that is stated, or those that `auto` may mean on the workers that the study may get."""
    stated, gpus = definition.model.compute_dtype, definition.resources.gpus_per_worker
    if stated != "auto":
        return (stated,)
    if gpus == "auto":
        return ("bfloat16", "float32")
    return ("bfloat16",) if gpus > 0 else ("float32",)
