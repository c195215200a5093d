"""What a definition may ask of a pruner, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from search_spaces.errors import Fault
from search_spaces.faults import translate
from search_spaces.pruning.reading import read_pruning, rung_faults
from search_spaces.pruning.specs import (
    PRUNING_SPECS,
    AshaPruning,
    HyperbandPruning,
    MedianPruning,
    NoPruning,
    PatientPruning,
    PercentilePruning,
    Pruning,
    ThresholdPruning,
    WilcoxonPruning,
)

ASHA = AshaPruning(algorithm="asha", min_examples=100)
MEDIAN = MedianPruning(algorithm="median", n_startup_trials=2, min_examples=100)
SPECS = (
    NoPruning(),
    MEDIAN,
    PercentilePruning(algorithm="percentile", percentile=50, max_examples=700),
    ASHA,
    HyperbandPruning(algorithm="hyperband", max_examples=900),
    PatientPruning(algorithm="patient", patience=2, wrapped=ASHA),
    PatientPruning(algorithm="patient", patience_examples=300, min_delta=0.01),
    ThresholdPruning(algorithm="threshold", upper=2.0),
    WilcoxonPruning(algorithm="wilcoxon"),
)


def read(raw: Any) -> tuple[Any, dict[str, Fault]]:
    faults: list[Fault] = []
    spec = read_pruning(raw, "pruning", faults)
    return spec, {fault.path: fault for fault in faults}


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"algorithm": "asha", "min_examples": 0}, "min_examples"),
        ({"algorithm": "asha", "min_examples": 10, "reduction_factor": 1}, "reduction_factor"),
        ({"algorithm": "asha", "min_examples": 10, "max_examples": 10}, "max_examples"),
        ({"algorithm": "asha", "n_min_trials": 0}, "n_min_trials"),
        ({"algorithm": "hyperband", "min_examples": True}, "min_examples"),
        ({"algorithm": "percentile", "percentile": 100}, "percentile"),
        ({"algorithm": "median", "interval_examples": 0}, "interval_examples"),
        ({"algorithm": "median", "min_examples": 500, "max_examples": 499}, "max_examples"),
        ({"algorithm": "none", "min_examples": 5}, "min_examples"),
        ({"algorithm": "threshold"}, "upper"),
        ({"algorithm": "threshold", "upper": 1, "lower": 2}, "upper"),
        ({"algorithm": "threshold", "upper": "nan"}, "upper"),
        ({"algorithm": "wilcoxon", "p_threshold": 0}, "p_threshold"),
        ({"algorithm": "patient"}, "patience_examples"),
        ({"algorithm": "patient", "patience": 1, "patience_examples": 100}, "patience_examples"),
        ({"algorithm": "patient", "patience": 1, "min_delta": -1}, "min_delta"),
    ],
)
def test_a_wrong_spec_is_refused_at_its_place(raw: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PRUNING_SPECS[raw["algorithm"]].model_validate(raw)
    assert [fault.path for fault in translate(caught.value)] == [path]
    spec, faults = read(raw)
    assert (spec, list(faults)) == (None, [f"pruning.{path}"])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.algorithm)
def test_specs_survive_json_and_are_read_as_they_were_written(spec: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Pruning)
    assert adapter.validate_json(adapter.dump_json(spec)) == spec
    assert read(adapter.dump_python(spec, mode="json")) == (spec, {})


def test_every_algorithm_has_a_spec_of_its_name() -> None:
    assert {
        name: spec.model_fields["algorithm"].annotation.__args__ for name, spec in PRUNING_SPECS.items()
    } == {name: (name,) for name in PRUNING_SPECS}
    assert {spec.algorithm for spec in SPECS} == set(PRUNING_SPECS)


def test_no_pruning_section_prunes_nothing() -> None:
    assert read({}) == (NoPruning(), {})


@pytest.mark.parametrize(
    ("wrapped", "path", "nearest"),
    [
        ({"algorithm": "medain"}, "pruning.wrapped.algorithm", "median"),
        ({"algorithm": "patient", "patience": 1}, "pruning.wrapped.algorithm", None),
        ({"algorithm": "none"}, "pruning.wrapped.algorithm", None),
        ({}, "pruning.wrapped.algorithm", None),
        ("median", "pruning.wrapped", None),
        ({"algorithm": "asha", "min_exampels": 5}, "pruning.wrapped.min_exampels", "min_examples"),
    ],
)
def test_a_wrong_wrapped_pruner_is_refused_at_its_place(wrapped: Any, path: str, nearest: str | None) -> None:
    spec, faults = read({"algorithm": "patient", "patience": 1, "wrapped": wrapped})
    assert spec is None
    assert list(faults) == [path]
    assert faults[path].nearest == nearest


def test_faults_beside_a_wrong_wrapped_pruner_are_told_with_it() -> None:
    _, faults = read({"algorithm": "patient", "patience": -1, "wrapped": {"algorithm": "medium"}})
    assert set(faults) == {"pruning.wrapped.algorithm", "pruning.patience"}


@pytest.mark.parametrize("spec", SPECS[1:], ids=lambda spec: spec.algorithm)
def test_a_pruner_needs_rungs(spec: Any) -> None:
    assert [fault.path for fault in rung_faults(spec, None)] == ["evaluation.every_examples"]
    assert rung_faults(spec, 100) == []


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (ASHA, "pruning.min_examples"),
        (PatientPruning(algorithm="patient", patience=1, wrapped=ASHA), "pruning.wrapped.min_examples"),
        (MedianPruning(algorithm="median", max_examples=100), "pruning.max_examples"),
    ],
)
def test_resources_before_the_first_rung_are_refused(spec: Any, path: str) -> None:
    assert [(fault.path, fault.allowed) for fault in rung_faults(spec, 101)] == [(path, "at least 101")]


def test_halving_begins_at_the_first_rung_when_nothing_else_is_said() -> None:
    assert rung_faults(AshaPruning(algorithm="asha"), 150) == []
    assert rung_faults(NoPruning(), None) == []
