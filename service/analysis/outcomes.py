"""The values, costs and constraint violations of a finished training under its study's definition. Pure.

It is computed from the outcome as SQL keeps it, so a coordinator that takes a study over comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search_spaces.definition import StudyDefinition
from service.db.kinds import StudyKind
from service.db.trials import Result

BYTES_PER_GB = 1e9


def shortfall(definition: StudyDefinition, kind: StudyKind, outcome: Mapping[str, Any]) -> str | None:
    """Why a training that came to its end is a failed trial all the same; None when it is not.

    A metric or cost that the definition names and the trial does not have is never made up.

    Args:
        definition: the study's.
        kind: of the study. A range test measures its curve and nothing else; an evaluation, the metrics.
        outcome: a `TrialOutcome` as a mapping.
    """
    value = outcome.get("value")
    if value is None or not math.isfinite(value):
        return f"it ended without a finite value of {definition.objective.metric}, the objective: {value}"
    if kind is StudyKind.RANGE_TEST or outcome.get("evaluated") is not None:
        return None
    known = _measured(outcome)
    named = [(str(name), "objective.costs") for name in definition.objective.costs]
    named += [(name, "constraints") for name in definition.constraints]
    missing = next(((name, section) for name, section in named if name not in known), None)
    return missing and f"it ended without {missing[0]}, which {missing[1]} requires"


def costs(definition: StudyDefinition, kind: StudyKind, outcome: Mapping[str, Any]) -> tuple[float, ...]:
    """A completed trial's costs, in the order of `objective.costs`: seconds, 10^9 bytes, numbers."""
    if kind is StudyKind.RANGE_TEST or outcome.get("evaluated") is not None:
        return ()
    known = _measured(outcome)
    return tuple(known[name] for name in definition.objective.costs)


def violations(definition: StudyDefinition, kind: StudyKind, outcome: Mapping[str, Any]) -> dict[str, float]:
    """Of a completed trial: by how much each constraint is exceeded, in its own unit; at most 0: kept."""
    if kind is StudyKind.RANGE_TEST or outcome.get("evaluated") is not None:
        return {}
    known = _measured(outcome)
    found = {}
    for name, bound in definition.constraints.items():
        beyond = [known[name] - bound.max] if bound.max is not None else []
        below = [bound.min - known[name]] if bound.min is not None else []
        found[name] = max(beyond + below)
    return found


def result(definition: StudyDefinition, kind: StudyKind, outcome: Mapping[str, Any]) -> Result:
    """What a completed trial is compared by."""
    broken = violations(definition, kind, outcome)
    return Result(
        value=outcome["value"],
        costs=costs(definition, kind, outcome),
        feasible=all(violation <= 0.0 for violation in broken.values()),
    )


def _measured(outcome: Mapping[str, Any]) -> dict[str, float]:
    """Everything that objectives and constraints may name: the metrics at the best rung, and the costs."""
    found: dict[str, Any] = dict(outcome.get("metrics") or {})
    # A worker that could not measure one of these leaves it at 0.
    found["train_seconds"] = outcome.get("train_seconds") or None
    memory = outcome.get("peak_memory_bytes")
    found["peak_memory_gb"] = memory / BYTES_PER_GB if memory else None
    found["trainable_parameters"] = outcome.get("trainable_parameters")
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
