"""Reads a definition's `pruning`, and checks it against the rungs that trials report at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from search_spaces.errors import Fault, join_path
from search_spaces.faults import name_fault, read_model, shown
from search_spaces.pruning.specs import (
    PRUNING_SPECS,
    AshaPruning,
    HyperbandPruning,
    NoPruning,
    PatientPruning,
    Pruning,
)

_SYNONYMS = {
    "successive_halving": "asha",
    "successivehalving": "asha",
    "sha": "asha",
    "nop": "none",
    "off": "none",
    "bohb": "hyperband",
    "early_stopping": "patient",
    "patience": "patient",
}
_WRAPPED = tuple(name for name in PRUNING_SPECS if name not in ("none", "patient"))


def read_pruning(raw: Any, path: str, faults: list[Fault], known: Collection[str] = PRUNING_SPECS) -> Any:
    """The spec in a raw section; None if it has faults, which are appended.

    Args:
        raw: As submitted; an empty mapping prunes nothing.
        path: The section's place.
        faults: Grows.
        known: The algorithms that may stand there.
    """
    if not isinstance(raw, Mapping):
        allowed = f"algorithm: {' | '.join(known)}"
        faults.append(Fault(path=path, value=shown(raw), message="must be a mapping", allowed=allowed))
        return None
    name, named = raw.get("algorithm"), join_path(path, "algorithm")
    if name is None:
        if not raw and "none" in known:
            return NoPruning()
        faults.append(Fault(path=named, value=None, message="is required", allowed=", ".join(known)))
        return None
    if not isinstance(name, str) or name not in known:
        faults.append(name_fault(named, name, "pruner", list(known), _SYNONYMS))
        return None
    before = len(faults)
    if name == "patient" and raw.get("wrapped") is not None:
        # By hand: pydantic would tell a fault in it for each algorithm that it might have been.
        wrapped = read_pruning(raw["wrapped"], join_path(path, "wrapped"), faults, _WRAPPED)
        raw = {**raw, "wrapped": wrapped}
    spec = read_model(PRUNING_SPECS[name], raw, path, faults)
    return spec if len(faults) == before else None


def rung_faults(pruning: Pruning, every_examples: int | None, path: str = "pruning") -> list[Fault]:
    """What is wrong with a pruner whose trials report every so many examples."""
    if isinstance(pruning, NoPruning):
        return []
    if every_examples is None:
        message = (
            f"is required with {pruning.algorithm} pruning: without it a trial is evaluated only at its"
            " end, when there is nothing left to prune"
        )
        allowed = "a whole number, at least 1"
        return [Fault(path="evaluation.every_examples", value=None, message=message, allowed=allowed)]
    found = []
    halving = isinstance(pruning, AshaPruning | HyperbandPruning)
    first = pruning.min_examples
    if halving and first is not None and first < every_examples:
        # One report would then cross several of the pruner's levels.
        found.append(_before_the_first(join_path(path, "min_examples"), first, every_examples))
    last = pruning.max_examples
    if last is not None and last < every_examples:
        found.append(_before_the_first(join_path(path, "max_examples"), last, every_examples))
    if isinstance(pruning, PatientPruning) and pruning.wrapped is not None:
        found += rung_faults(pruning.wrapped, every_examples, join_path(path, "wrapped"))
    return found


def _before_the_first(path: str, value: int, every_examples: int) -> Fault:
    message = f"is before the first evaluation, at evaluation.every_examples ({every_examples})"
    return Fault(path=path, value=value, message=message, allowed=f"at least {every_examples}")
