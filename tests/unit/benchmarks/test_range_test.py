"""The range test's reading of real sweeps, held against tables of real fine-tunes of two base models.

The curves were written by `python -m benchmarks.range_test --keep`, the tables by `make_search_table`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from benchmarks.make_search_table import DATA, QUICKSTART
from benchmarks.range_test import ALLOWED, MOST_DECADES, best_of, definition_of, read
from search_spaces.range_tests.analysis import narrow, propose
from search_spaces.range_tests.derivation import derive

SWEEPS: list[dict[str, Any]] = json.loads((DATA / "rate-curves.json").read_text())


def test_there_are_sweeps_of_two_base_models() -> None:
    assert {sweep["table"] for sweep in SWEEPS} == {"quickstart.json", "rates-second-base.json"}


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: f"{sweep['table']}-{sweep['seed']}")
def test_the_bounds_hold_the_best_rate_of_the_table_in_a_third_of_the_decades(sweep: dict[str, Any]) -> None:
    definition = derive(definition_of(QUICKSTART / "base", sweep["seed"]), "range-test")
    bounds = narrow(propose(read(definition, sweep["curves"])).bounds, ALLOWED).bounds
    assert bounds is not None
    best = best_of(DATA / sweep["table"]).learning_rate
    assert bounds[0] <= best <= bounds[1]
    assert math.log10(bounds[1] / bounds[0]) <= MOST_DECADES


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: f"{sweep['table']}-{sweep['seed']}")
def test_the_bounds_found_with_half_of_the_steps_differ_little(sweep: dict[str, Any]) -> None:
    """The reading goes by decades of the rate, not by steps."""
    definition = derive(definition_of(QUICKSTART / "base", sweep["seed"]), "range-test")
    all_steps = propose(read(definition, sweep["curves"])).bounds
    half = propose(read(definition, [curve[::2] for curve in sweep["curves"]])).bounds
    assert all_steps is not None
    assert half is not None
    for end, other in zip(all_steps, half, strict=True):
        assert abs(math.log10(end / other)) < 0.35
