"""What `benchmarks.search_quality` counts: searches replayed on a table small enough to follow by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay import Table, recipe_of, regrets, replay
from benchmarks.search_quality import Nightsweep

CURVES: list[tuple[str, int, list[tuple[int, float]]]] = [
    ("completed", 20, [(10, 4.0), (20, 3.0)]),
    ("completed", 40, [(20, 3.5), (40, 2.0)]),
    ("completed", 30, [(10, 2.0), (20, 1.0), (30, 1.5)]),
    ("completed", 20, [(20, 2.5)]),
    ("diverged", 15, [(10, 9.0)]),
    ("diverged", 5, []),
]
RAW: dict[str, Any] = {
    "grid": {"learning_rate": [1e-4, 1e-3, 1e-2], "lora_r": [4, 8]},
    "fixed": {"warmup_ratio": 0.1},
    "every_examples": 10,
    "trials": CURVES,
}
MORE_THAN_ALL = 1_000


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps(RAW | changes))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(written(tmp_path))


class InOrder:
    """Asks for the table's fine-tunes in order, prunes where it is told to, and keeps all it hears."""

    def __init__(self, table: Table, *, prunes: Collection[tuple[int, int]] = ()) -> None:
        self._table = table
        self._prunes = prunes
        self.heard: list[tuple[Any, ...]] = []
        self._asked = 0
        self._alive = 0
        self.most_alive = 0

    def ask(self) -> tuple[int, Mapping[str, float]] | None:
        if self._asked == len(self._table.curves):
            return None
        self._asked += 1
        self._alive += 1
        self.most_alive = max(self.most_alive, self._alive)
        return self._asked - 1, self._table.params(self._asked - 1)

    def report(self, number: int, rung: int, value: float, *, last: bool) -> bool:
        self.heard.append((number, rung, value, last))
        pruned = (number, rung) in self._prunes
        self._alive -= pruned
        return pruned

    def tell(self, number: int, value: float | None) -> None:
        self.heard.append((number, value))
        self._alive -= 1


def test_a_table_knows_its_recipes_and_its_best(table: Table) -> None:
    assert table.params(0) == {"learning_rate": 1e-4, "lora_r": 4}
    assert table.params(3) == {"learning_rate": 1e-3, "lora_r": 8}
    assert [table.curve(table.params(index)) for index in range(6)] == table.curves
    assert (table.examples, table.max_examples, table.best) == (130, 40, 1.0)
    assert [curve.value for curve in table.curves] == [3.0, 2.0, 1.0, 2.5, math.inf, math.inf]


def test_a_table_that_lacks_fine_tunes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 5 fine-tunes"):
        Table(written(tmp_path, trials=CURVES[:5]))


def test_a_study_over_a_table_searches_its_grid_at_its_rungs(table: Table) -> None:
    definition = table.definition(pruning={"algorithm": "median"}, search={"seed": 3})
    assert (definition.search.total_trials, definition.search.seed) == (6, 3)
    assert definition.evaluation.every_examples == 10
    assert definition.recipe == {"warmup_ratio": 0.1}
    assert recipe_of(definition, table.params(3)) == table.params(3)


def test_every_example_that_is_trained_counts_once_and_four_trials_are_alive(table: Table) -> None:
    searcher = InOrder(table)
    found = list(replay(table, searcher, examples=MORE_THAN_ALL))
    assert found == [(30, 3.0), (80, 2.5), (95, 1.0)]
    assert searcher.most_alive == 4
    assert searcher.heard == [
        (0, 10, 4.0, False),
        (2, 10, 2.0, False),
        (0, 20, 3.0, True),
        (0, 3.0),
        (1, 20, 3.5, False),
        (2, 20, 1.0, False),
        (3, 20, 2.5, True),
        (3, 2.5),
        (5, None),  # began at 20 and diverged at 25, before its first rung
        (2, 30, 1.5, True),
        (2, 1.0),  # its best rung, not its last
        (4, 10, 9.0, False),  # began at 20
        (4, None),
        (1, 40, 2.0, True),
        (1, 2.0),
    ]


def test_the_slowest_fine_tune_ends_when_all_examples_are_spent(tmp_path: Path) -> None:
    slowest = ("completed", 40, [(20, 3.5), (40, 0.5)])
    table = Table(written(tmp_path, trials=[CURVES[0], slowest, *CURVES[2:]]))
    found = list(replay(table, InOrder(table), examples=MORE_THAN_ALL))
    assert found[-1] == (table.examples, 0.5)


def test_a_pruned_trial_costs_no_more_and_makes_room(table: Table) -> None:
    searcher = InOrder(table, prunes=[(2, 10)])
    found = list(replay(table, searcher, examples=MORE_THAN_ALL))
    assert found == [(30, 3.0), (70, 2.5), (table.examples - 20, 2.0)]
    assert [heard for heard in searcher.heard if heard[0] == 2] == [(2, 10, 2.0, False)]
    assert searcher.heard.index((4, None)) < searcher.heard.index((5, None)), "it began at 10, not at 20"


def test_a_search_ends_once_its_examples_are_spent(table: Table) -> None:
    searcher = InOrder(table)
    assert list(replay(table, searcher, examples=80)) == [(30, 3.0), (80, 2.5)]
    assert searcher.heard[-1] == (3, 2.5)
    assert list(replay(table, InOrder(table), examples=30)) == [(30, 3.0)]
    assert list(replay(table, InOrder(table), examples=20)) == []


def test_regret_is_what_was_found_by_then_above_the_best(table: Table) -> None:
    found = [(30, 3.0), (80, 2.5), (95, 1.0)]
    assert regrets(table, found, [0.1, 0.25, 0.5, 0.7, 1.0]) == [math.inf, 2.0, 2.0, 1.5, 0.0]
    assert regrets(table, [], [1.0]) == [math.inf]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_services_search_of_the_whole_table_finds_its_best(table: Table, seed: int) -> None:
    """Two of its trials have diverged, and it asks for each recipe once."""
    found = list(replay(table, Nightsweep(table, seed), examples=MORE_THAN_ALL))
    assert found[-1][1] == table.best
    assert found[-1][0] <= table.examples
    assert regrets(table, found, [1.0]) == [0.0]
