"""Trials, lengths and rungs of a plan, against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.trial_length import TrainingPlan, rungs
from service.plans import rungs as plan_rungs
from service.plans.lengths import Rows, field_values, rows_of, rung_fault
from service.plans.rungs import pruning_rungs, shared_rungs
from service.plans.schemas import Amount, Span
from service.plans.training import plan_training, plan_trials, trial_lengths
from tests.support.service.plans import make_data, make_definition, make_split

ROWS = Rows(per_epoch={64: 100}, tokens={64: 20.0}, evaluation=50, estimated=False)
GRID = {
    "algorithm": "grid",
    "trials": None,
    "space": {"batch_size": {"choices": [4, 16]}, "epochs": {"choices": [1, 3]}},
}


def training(definition: StudyDefinition, rows: Rows = ROWS) -> Any:
    trials = plan_trials(definition)
    lengths, exact = trial_lengths(definition, trials.search, rows)
    return plan_training(definition, trials, lengths, exact=exact, rows=rows)


def test_trials_are_the_searchs_the_range_tests_and_the_repeats() -> None:
    definition = make_definition(search={"learning_rate_range_test": True}, repeats={"top_k": 2, "seeds": 3})
    planned = plan_trials(definition)
    # Corners: batch 4 and 16, the rank is fixed.
    assert (planned.search, planned.range_test, planned.repeats, planned.total) == (12, 2, 6, 20)
    assert planned.space_size is None


def test_a_grid_has_its_points() -> None:
    planned = plan_trials(make_definition(search=GRID))
    assert (planned.search, planned.space_size, planned.total) == (4, 4, 4)


def test_a_searchs_total_lies_between_those_of_its_shortest_and_longest_trial() -> None:
    planned = training(make_definition(evaluation={"every_examples": 40}))
    assert (planned.shortest.examples, planned.longest.examples) == (100, 300)
    assert planned.total.examples == Span(at_least=1_200, at_most=3_600)
    assert planned.total.tokens == Span(at_least=24_000, at_most=72_000)
    # Rungs 40, 80, 100 of the shortest; 40, 80, ..., 280, 300 of the longest.
    assert (planned.shortest.evaluations, planned.longest.evaluations) == (3, 8)
    assert planned.total.evaluation_examples == Span(at_least=12 * 150, at_most=12 * 400)


def test_a_grids_total_is_exact() -> None:
    planned = training(make_definition(search=GRID))
    assert planned.total.examples == Span(at_least=800, at_most=800)
    assert planned.total.evaluation_examples == Span(at_least=200, at_most=200)
    assert (planned.total, planned.sweeps) == (planned.search, [])
    assert (planned.range_test, planned.repeats) == (None, None)


def test_the_total_has_the_range_test_and_the_repeats() -> None:
    planned = training(
        make_definition(search={"learning_rate_range_test": {"steps": 50}}, repeats={"top_k": 2, "seeds": 3})
    )
    # 50 steps of batch 4 are 200 examples. Of batch 16 an epoch of 100 has 7 steps, the last of 4 examples:
    # 50 steps are 7 epochs and one step.
    assert [(sweep.batch_size, sweep.steps, sweep.examples) for sweep in planned.sweeps] == [
        (4, 50, 200),
        (16, 50, 716),
    ]
    assert planned.sweeps[0].epochs == 2
    assert planned.range_test == Amount(
        examples=Span(at_least=916, at_most=916),
        tokens=Span(at_least=18_320, at_most=18_320),
        evaluation_examples=Span(at_least=0, at_most=0),
    )
    assert planned.search.examples == Span(at_least=1_200, at_most=3_600)
    assert planned.repeats.examples == Span(at_least=600, at_most=1_800)
    assert planned.total.examples == Span(at_least=1_200 + 916 + 600, at_most=3_600 + 916 + 1_800)
    assert planned.total.tokens == Span(at_least=20 * 2_716, at_most=20 * 6_316)
    assert planned.total.evaluation_examples == Span(at_least=18 * 50, at_most=18 * 50)


def test_a_sweep_at_a_length_that_was_not_read_has_that_of_the_next_longer() -> None:
    lengths = {"choices": [40, *range(16, 34), 64]}  # more than are read: the ends alone
    definition = make_definition(
        search={
            "learning_rate_range_test": {"steps": 20},
            "space": {
                "learning_rate": {"min": 1e-4, "max": 1e-3, "scale": "log"},
                "batch_size": {"choices": [4]},
                "max_length": lengths,
            },
        }
    )
    rows = Rows(per_epoch={64: 100, 16: 90}, tokens={64: 20.0, 16: 10.0}, evaluation=50, estimated=False)
    (sweep,) = training(definition, rows).sweeps
    assert (sweep.max_length, sweep.examples, sweep.tokens) == (40, 80, 1_600)


def test_steps_are_told_for_each_batch_size() -> None:
    small, large = training(make_definition()).steps
    assert (small.batch_size, small.steps, small.warmup_steps) == (
        4,
        Span(at_least=25, at_most=75),
        Span(at_least=3, at_most=8),
    )
    assert (large.batch_size, large.steps, large.warmup_steps) == (
        16,
        Span(at_least=7, at_most=21),
        Span(at_least=1, at_most=3),
    )


def test_a_searched_max_length_changes_rows_and_tokens() -> None:
    definition = make_definition(
        search={"space": {"batch_size": {"choices": [4]}, "max_length": {"choices": [32, 64]}}}
    )
    rows = Rows(per_epoch={64: 100, 32: 90}, tokens={64: 20.0, 32: 15.0}, evaluation=50, estimated=False)
    planned = training(definition, rows)
    assert planned.examples_per_epoch == Span(at_least=90, at_most=100)
    # The space has two configurations, and each is evaluated once.
    assert planned.total.tokens == Span(at_least=90 * 15 + 100 * 20, at_most=90 * 15 + 100 * 20)


def test_a_conditional_field_keeps_its_fixed_value_too() -> None:
    space = {
        "optimizer": {"choices": ["adamw", "sgd"]},
        "epochs": {"choices": [2, 3], "when": {"optimizer": ["sgd"]}},
    }
    assert field_values(make_definition(search={"space": space}), "epochs") == [2.0, 3.0, 1.0]


def test_the_ends_stand_for_a_long_range() -> None:
    space = {"batch_size": {"min": 2, "max": 200}}
    assert field_values(make_definition(search={"space": space}), "batch_size") == [2, 200]


def test_rows_beyond_those_looked_at_are_taken_to_be_like_them() -> None:
    data = make_data(make_split(1_000, rows_read=100, cut={"usable_rows": 90, "tokens": 1_800}))
    rows, unknown = rows_of(data)
    assert unknown is None
    assert rows == Rows(per_epoch={64: 900}, tokens={64: 20.0}, evaluation=50, estimated=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_data(make_split(None, rows_read=5)), "the train data has more than 5 rows"),
        (make_data(make_split(5, cut={"usable_rows": 0})), "the train data has no usable row"),
    ],
)
def test_rows_that_cannot_be_told_say_why(data: Any, reason: str) -> None:
    rows, unknown = rows_of(data)
    assert rows is None
    assert unknown is not None
    assert reason in unknown


def test_trials_share_the_rungs_before_the_shortest_ends() -> None:
    plans = [TrainingPlan(100, 4, 1), TrainingPlan(100, 4, 3)]
    assert shared_rungs(plans, 40, all_batch_sizes=True) == [40, 80]


def test_trials_of_one_length_share_their_end_too() -> None:
    assert shared_rungs([TrainingPlan(100, 4, 1), TrainingPlan(100, 16, 1)], 40, all_batch_sizes=True) == [
        40,
        80,
        100,
    ]


def test_a_batch_larger_than_the_distance_of_two_rungs_skips_some() -> None:
    # Batch 50 sees 50 and 100 examples, so it reports at 40 and at its end; 30 reports at 20, 60, 80 and 100.
    plans = [TrainingPlan(100, 50, 1), TrainingPlan(100, 4, 1)]
    assert shared_rungs(plans, 20, all_batch_sizes=True) == [40, 100]
    assert shared_rungs(plans, 20, all_batch_sizes=False) is None


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        ({"algorithm": "none"}, []),
        ({"algorithm": "median", "min_examples": 100}, [120, 160, 200, 240, 280]),
        ({"algorithm": "median", "min_examples": 40, "interval_examples": 100}, [40, 160, 240]),
        ({"algorithm": "asha", "min_examples": 50, "reduction_factor": 2}, [80, 120, 200]),
        ({"algorithm": "asha", "min_examples": 40, "max_examples": 150, "reduction_factor": 3}, [40, 120]),
        ({"algorithm": "wilcoxon", "n_startup_rungs": 4}, [160, 200, 240, 280]),
        ({"algorithm": "patient", "patience": 2}, [160, 200, 240, 280]),
    ],
)
def test_pruning_happens_at_the_rungs_that_its_algorithm_looks_at(
    pruning: dict[str, Any], expected: list[int]
) -> None:
    spec = make_definition(pruning=pruning, evaluation={"every_examples": 40}).pruning
    assert pruning_rungs(spec, TrainingPlan(100, 4, 3), 40) == expected


@pytest.mark.parametrize(
    "sections",
    [
        {"search": {**GRID, "space": {"epochs": {"choices": [9_900 + i for i in range(1, 101)]}}}},
        {"search": {"space": {"batch_size": {"choices": list(range(3, 19))}}}, "recipe": {"epochs": 10_000}},
        {"search": {"space": {"epochs": {"choices": [10_000]}}}, "pruning": {"algorithm": "wilcoxon"}},
        {"search": {"space": {"epochs": {"choices": [10_000]}}}, "pruning": {"algorithm": "hyperband"}},
    ],
)
def test_no_plan_goes_through_millions_of_rungs(
    monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    seen = 0

    def counted_rungs(plan: TrainingPlan, every: int | None) -> Any:
        nonlocal seen
        for rung in rungs(plan, every):
            seen += 1
            yield rung

    monkeypatch.setattr(plan_rungs, "rungs", counted_rungs)
    rows = Rows(per_epoch={64: 1_000_003}, tokens={64: 20.0}, evaluation=50, estimated=False)
    planned = training(make_definition(**{"evaluation": {"every_examples": 2}, **sections}), rows)
    assert planned.longest.evaluations > 10_000
    assert seen < 250_000


def test_a_grid_of_many_lengths_has_a_plan() -> None:
    """The report knows the shortest and the longest of them alone."""
    space = {"max_length": {"choices": list(range(8, 64))}}
    rows = Rows(per_epoch={8: 50, 63: 100}, tokens={8: 5.0, 63: 20.0}, evaluation=50, estimated=False)
    planned = training(make_definition(search={**GRID, "space": space}), rows)
    assert (planned.shortest.examples, planned.longest.examples) == (50, 100)


@pytest.mark.parametrize(("every", "epochs", "faulty"), [(1, 100, False), (1, 101, True), (50, 5000, False)])
def test_a_trial_has_at_most_10_000_rungs(every: int, epochs: int, faulty: bool) -> None:
    definition = make_definition(
        search={"space": {"learning_rate": {"min": 1e-5, "max": 1e-3}}},
        recipe={"batch_size": 1, "epochs": epochs},
        evaluation={"every_examples": every},
    )
    fault = rung_fault(definition, make_data(make_split(100), make_split(50)))
    assert (fault is not None) == faulty
    if fault is not None:
        assert str(fault) == (
            "evaluation.every_examples: makes at least 10,100 evaluations of the longest trial; evaluate less"
            " often; allowed: at most 10,000 evaluations of a trial"
        )
