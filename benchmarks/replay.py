"""Searches replayed on a table of fine-tunes that were really run: deterministic, and free of a GPU's price.

A search asks for recipes; the table answers with the rungs that the recipe's fine-tune reported. Several
trials are alive at a time, as in a service with several workers, and training examples are the clock.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.parsing.document import parse_definition

PARALLEL_TRIALS = 4
"""The default of `budget.max_parallel_trials`."""


@dataclass(frozen=True)
class Curve:
    """One fine-tune of the table."""

    rungs: tuple[tuple[int, float], ...]
    """(training examples, eval_loss), ascending."""
    examples: int
    """Training examples it took."""
    completed: bool
    """False: it diverged."""

    @property
    def value(self) -> float:
        """Its best rung's eval_loss; infinite if it diverged."""
        return min(value for _, value in self.rungs) if self.completed else math.inf


class Table:
    """Every recipe of a grid with what became of it.

    Args:
        path: As `make_search_table` writes it.
    """

    def __init__(self, path: Path) -> None:
        raw = json.loads(path.read_text())
        self.grid: dict[str, list[float]] = raw["grid"]
        self.fixed: dict[str, Any] = raw["fixed"]
        self.every_examples: int = raw["every_examples"]
        curves = [
            Curve(tuple((rung, value) for rung, value in rungs), examples, ended == "completed")
            for ended, examples, rungs in raw["trials"]
        ]
        if len(curves) != math.prod(len(values) for values in self.grid.values()):
            raise ValueError(f"{path} holds {len(curves)} fine-tunes, which is not its grid's size")
        self.curves = curves

    @property
    def best(self) -> float:
        return min(curve.value for curve in self.curves)

    @property
    def examples(self) -> int:
        """Of an exhaustive search."""
        return sum(curve.examples for curve in self.curves)

    def params(self, index: int) -> dict[str, float]:
        """The recipe of a curve."""
        point = {}
        for name, values in reversed(self.grid.items()):
            index, digit = divmod(index, len(values))
            point[name] = values[digit]
        return {name: point[name] for name in self.grid}

    def curve(self, params: Mapping[str, float]) -> Curve:
        """The fine-tune of a recipe that is on the grid."""
        index = 0
        for name, values in self.grid.items():
            index = index * len(values) + values.index(params[name])
        return self.curves[index]

    def definition(self, **sections: Any) -> StudyDefinition:
        """A study over the table's grid, every key that is not given at its default."""
        space = {name: {"choices": values} for name, values in self.grid.items()}
        search = {
            "algorithm": "tpe",
            "trials": len(self.curves),
            "space": space,
            **sections.pop("search", {}),
        }
        return parse_definition(
            {
                "name": "replay",
                "model": {"id": "base"},
                "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
                "search": search,
                "recipe": self.fixed,
                "evaluation": {"every_examples": self.every_examples},
                **sections,
            }
        )

    @property
    def max_examples(self) -> int:
        return max(curve.examples for curve in self.curves)


class Searcher(Protocol):
    """What is compared: something that asks, prunes and learns."""

    def ask(self) -> tuple[int, Mapping[str, float]] | None:
        """A trial's number and recipe; None once there is nothing left to ask."""

    def report(self, number: int, rung: int, value: float, *, last: bool) -> bool:
        """Takes in a rung's eval_loss; whether the trial is to be pruned, which the last rung never is."""

    def tell(self, number: int, value: float | None) -> None:
        """Takes in a trial's end: its value if it completed, None if it diverged."""


@dataclass
class _Running:
    number: int
    curve: Curve
    reported: int = 0
    seen: int = 0

    def next_stop(self) -> int:
        """Training examples until its next rung, or until it diverges."""
        if self.reported < len(self.curve.rungs):
            return self.curve.rungs[self.reported][0]
        return self.curve.examples


def replay(table: Table, searcher: Searcher, *, examples: int) -> Iterator[tuple[int, float]]:
    """Runs a search until it has spent so many training examples, or has nothing left to ask.

    Yields:
        (examples spent by all trials together, best value of those completed) whenever that improves.
    """
    clock: list[tuple[int, int, _Running]] = []
    now = spent = asked = 0
    best = math.inf

    def start() -> None:
        nonlocal asked
        while len(clock) < PARALLEL_TRIALS and (trial := searcher.ask()) is not None:
            running = _Running(trial[0], table.curve(trial[1]))
            heapq.heappush(clock, (now + running.next_stop(), asked, running))
            asked += 1

    start()
    while clock and spent < examples:
        now, order, running = heapq.heappop(clock)
        spent += running.next_stop() - running.seen
        running.seen = running.next_stop()
        if running.reported == len(running.curve.rungs):
            searcher.tell(running.number, None)
        else:
            rung, value = running.curve.rungs[running.reported]
            running.reported += 1
            last = running.curve.completed and running.reported == len(running.curve.rungs)
            pruned = searcher.report(running.number, rung, value, last=last)
            if last:
                searcher.tell(running.number, running.curve.value)
                if running.curve.value < best:
                    best = running.curve.value
                    yield spent, best
            elif not pruned:
                heapq.heappush(clock, (now + running.next_stop() - running.seen, order, running))
                continue
        start()


def regrets(table: Table, found: Sequence[tuple[int, float]], shares: Sequence[float]) -> list[float]:
    """How far the best value found by each share of the exhaustive search's examples is above the grid's
    best, as a share of that; infinite where nothing had completed."""
    return [
        min((value for spent, value in found if spent <= share * table.examples), default=math.inf)
        / table.best
        - 1
        for share in shares
    ]


def recipe_of(definition: StudyDefinition, params: Mapping[str, Any]) -> dict[str, Any]:
    """The searched fields of a trial's recipe, from Optuna's parameters."""
    recipe = build_recipe(definition, params)
    return {name: getattr(recipe, name) for name in definition.search.space.parameters}
