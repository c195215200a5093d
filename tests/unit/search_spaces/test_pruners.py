from __future__ import annotations

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from search_spaces.faults import translate
from search_spaces.pruners import (
    PRUNING_SPECS,
    AshaPruning,
    HyperbandPruning,
    MedianPruning,
    NoPruning,
    PercentilePruning,
    Pruning,
    build_pruner,
)

ASHA = AshaPruning(algorithm="asha", min_examples=100, reduction_factor=3)
MEDIAN = MedianPruning(algorithm="median", n_startup_trials=2, min_examples=100)
PERCENTILE = PercentilePruning(algorithm="percentile", percentile=50, n_startup_trials=2)
HYPERBAND = HyperbandPruning(algorithm="hyperband", min_examples=100, max_examples=900)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(
    study: optuna.Study, values: list[float], rungs: tuple[int, ...] = (100, 300, 900)
) -> list[int | None]:
    """Trials one after another with a constant value each; the rung at which each was pruned."""
    ends: list[int | None] = []
    for value in values:
        trial = study.ask()
        ends.append(None)
        for rung in rungs:
            trial.report(value, rung)
            if trial.should_prune():
                ends[-1] = rung
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)
    return ends


@pytest.mark.parametrize("spec", [ASHA, MEDIAN, PERCENTILE], ids=lambda spec: spec.algorithm)
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_bad_trial_is_pruned_at_its_first_rung_and_a_good_one_never(spec: Any, direction: str) -> None:
    study = optuna.create_study(direction=direction, pruner=build_pruner(spec, max_examples=900))
    sign = 1.0 if direction == "minimize" else -1.0
    ends = run(study, [sign * value for value in (2.0, 1.0, 9.0, 0.5)])
    assert ends == [None, None, 100, None]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_hyperband_prunes_the_bad_and_keeps_the_best(direction: str) -> None:
    study = optuna.create_study(
        study_name="h", direction=direction, pruner=build_pruner(HYPERBAND, max_examples=0)
    )
    sign = 1.0 if direction == "minimize" else -1.0
    ends = run(study, [sign * value for value in [*range(30, 0, -1), *range(1, 31)]])
    assert ends[:30] == [None] * 30, "each is the best so far"
    assert sum(end is not None for end in ends[31:]) > 15


def test_no_pruning_prunes_nothing() -> None:
    study = optuna.create_study(pruner=build_pruner(NoPruning(), max_examples=900))
    assert run(study, [1.0, 1e9]) == [None, None]


def test_median_waits_for_completed_trials_and_for_its_first_examples() -> None:
    spec = MedianPruning(algorithm="median", n_startup_trials=3, min_examples=300)
    study = optuna.create_study(pruner=build_pruner(spec, max_examples=900))
    assert run(study, [1.0, 9.0, 1.0, 9.0, 9.0]) == [None, None, None, 300, 300]


def test_median_looks_once_per_interval() -> None:
    spec = MedianPruning(algorithm="median", n_startup_trials=1, min_examples=100, interval_examples=500)
    study = optuna.create_study(pruner=build_pruner(spec, max_examples=900))
    rungs = (100, 200, 600, 700)
    run(study, [1.0], rungs)
    trial = study.ask()
    looked = []
    for rung, value in zip(rungs, (0.5, 9.0, 9.0, 9.0), strict=True):
        trial.report(value, rung)
        looked.append(trial.should_prune())
    # The best value so far counts, so a good start protects: Optuna's rule.
    assert looked == [False] * 4
    other = study.ask()
    other.report(0.99, 100)
    assert not other.should_prune()


def test_asha_keeps_a_third_at_each_rung_whatever_pruner_object_asks() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="a")
    ends: list[int | None] = []
    for value in [1.0, *[5.0] * 4, 0.9, 5.0]:
        study = optuna.load_study(study_name="a", storage=storage, pruner=build_pruner(ASHA, 900))
        ends += run(study, [value])
    assert ends == [None, 100, 100, 100, 100, None, 100]


def test_hyperband_takes_the_longest_trial_where_the_spec_names_none() -> None:
    spec = HyperbandPruning(algorithm="hyperband", min_examples=100)
    for max_examples in (50, 100, 900):
        study = optuna.create_study(study_name="h", pruner=build_pruner(spec, max_examples=max_examples))
        assert run(study, [1.0]) == [None]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"algorithm": "asha"}, "min_examples"),
        ({"algorithm": "asha", "min_examples": 0}, "min_examples"),
        ({"algorithm": "asha", "min_examples": 10, "reduction_factor": 1}, "reduction_factor"),
        ({"algorithm": "asha", "min_examples": 10, "max_examples": 10}, "max_examples"),
        ({"algorithm": "hyperband", "min_examples": True}, "min_examples"),
        ({"algorithm": "percentile", "percentile": 100}, "percentile"),
        ({"algorithm": "median", "interval_examples": 0}, "interval_examples"),
        ({"algorithm": "none", "min_examples": 5}, "min_examples"),
    ],
)
def test_a_wrong_spec_is_refused_at_its_place(raw: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PRUNING_SPECS[raw["algorithm"]].model_validate(raw)
    assert [fault.path for fault in translate(caught.value)] == [path]


@pytest.mark.parametrize("spec", [NoPruning(), ASHA, MEDIAN, PERCENTILE, HYPERBAND])
def test_specs_survive_json(spec: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Pruning)
    assert adapter.validate_json(adapter.dump_json(spec)) == spec


def test_every_algorithm_has_a_spec_of_its_name() -> None:
    assert {
        name: spec.model_fields["algorithm"].annotation.__args__ for name, spec in PRUNING_SPECS.items()
    } == {name: (name,) for name in ("none", "median", "percentile", "asha", "hyperband")}
