"""How good a recipe a search finds for how many training examples: `python -m benchmarks.search_quality`.

Searches are replayed on `data/quickstart.json`, a full grid of fine-tunes of the quickstart that were really
run (`make_search_table`), with four trials alive at a time. The table printed is the regret: how far the best
completed trial is above the grid's best, in percent of that, against the share of the training examples that
the whole grid takes; the median over the seeds, and in brackets the share of seeds within 1 %.

Everything is seeded: the same versions of the libraries print the same table.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.replay import Searcher, Table, recipe_of, regrets, replay
from service.optuna_store import asking, reporting, telling
from service.optuna_store.reporting import should_prune
from service.states import AttemptState

TABLE = Path(__file__).resolve().parent / "data" / "quickstart.json"
SHARES = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
SEEDS = 50
CLOSE = 0.01

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Nightsweep:
    """The service's own asks, pruning and tells, on a storage in memory."""

    def __init__(self, table: Table, seed: int, **sections: Any) -> None:
        search = {**sections.pop("search", {}), "seed": seed}
        self._definition = table.definition(search=search, **sections)
        self._max_examples = table.max_examples
        self._study = optuna.create_study(direction="minimize")
        self._left = self._definition.search.total_trials

    def ask(self) -> tuple[int, Mapping[str, float]] | None:
        if not self._left:
            return None
        self._left -= 1
        number, params = asking.ask(self._study, self._definition)
        return number, recipe_of(self._definition, params)

    def report(self, number: int, rung: int, value: float, *, last: bool) -> bool:
        reporting.report(self._study, number, rung, value)
        if last:
            return False
        reason = should_prune(self._study, self._definition, number, self._max_examples)
        if reason is not None:
            telling.tell(self._study, number, AttemptState.PRUNED, reason)
        return reason is not None

    def tell(self, number: int, value: float | None) -> None:
        outcome = AttemptState.DIVERGED if value is None else AttemptState.COMPLETED
        telling.tell(self._study, number, outcome, "replayed", value=value)


class Optuna:
    """Optuna as its tutorials use it: a sampler, a pruner, `trial.suggest_*`."""

    def __init__(
        self,
        table: Table,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
        *,
        ranges: bool,
    ) -> None:
        """
        Args:
            table: What is searched.
            sampler: Optuna's.
            pruner: Optuna's.
            ranges: Numbers are suggested from ranges and moved to the nearest value of the table (the rate on
                a logarithmic scale), as a person who knows that they are ordered would do it; otherwise every
                field is categorical.
        """
        self._table = table
        self._study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
        self._trials: dict[int, optuna.Trial] = {}
        self._ranges = ranges

    def ask(self) -> tuple[int, Mapping[str, float]] | None:
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return trial.number, {n: self._suggest(trial, n, values) for n, values in self._table.grid.items()}

    def _suggest(self, trial: optuna.Trial, name: str, values: list[float]) -> float:
        if not self._ranges or name in ("batch_size", "lora_r"):
            return trial.suggest_categorical(name, values)
        if name == "epochs":
            return trial.suggest_int(name, int(values[0]), int(values[-1]))
        log = name == "learning_rate"
        drawn = trial.suggest_float(name, values[0], values[-1], log=log)
        scale: Callable[[float], float] = math.log if log else float
        return min(values, key=lambda value: abs(scale(value) - scale(drawn)))

    def report(self, number: int, rung: int, value: float, *, last: bool) -> bool:
        trial = self._trials[number]
        trial.report(value, rung)
        if last or not trial.should_prune():
            return False
        self._study.tell(trial, state=TrialState.PRUNED)
        return True

    def tell(self, number: int, value: float | None) -> None:
        # A fine-tune that diverged is told as Optuna's tutorials do it.
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(self._trials[number], value, state=state)


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(seed=seed)


SEARCHES: Mapping[str, Callable[[Table, int], Searcher]] = {
    "nightsweep: tpe, asha": lambda t, s: Nightsweep(t, s, pruning={"algorithm": "asha"}),
    "nightsweep: tpe, no pruning": lambda t, s: Nightsweep(t, s),
    "nightsweep: random, asha": lambda t, s: Nightsweep(
        t, s, search={"algorithm": "random"}, pruning={"algorithm": "asha"}
    ),
    "optuna: tpe": lambda t, s: Optuna(t, _tpe(s), optuna.pruners.NopPruner(), ranges=False),
    "optuna: tpe, ranges": lambda t, s: Optuna(t, _tpe(s), optuna.pruners.NopPruner(), ranges=True),
    "optuna: tpe, asha": lambda t, s: Optuna(
        t, _tpe(s), optuna.pruners.SuccessiveHalvingPruner(), ranges=False
    ),
    "optuna: random": lambda t, s: Optuna(
        t, optuna.samplers.RandomSampler(seed=s), optuna.pruners.NopPruner(), ranges=False
    ),
}


def _run(job: tuple[str, int]) -> tuple[str, list[float]]:
    name, seed = job
    warnings.simplefilter("ignore")
    table = Table(TABLE)
    spend = int(max(SHARES) * table.examples)
    found = list(replay(table, SEARCHES[name](table, seed), examples=spend))
    return name, regrets(table, found, SHARES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", help="searches whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    table = Table(TABLE)
    print(
        f"{len(table.curves)} fine-tunes, {table.examples:,} training examples in all; "
        f"best eval_loss {table.best:.6g}: {table.params(min(range(len(table.curves)), key=_value(table)))}; "
        f"{arguments.seeds} seeds\n"
    )
    names = [name for name in SEARCHES if arguments.only is None or arguments.only in name]
    jobs = [(name, seed) for name in names for seed in range(arguments.seeds)]
    by_search: dict[str, list[list[float]]] = {name: [] for name in names}
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for name, values in pool.imap_unordered(_run, jobs):
            by_search[name].append(values)
    print("| regret (seeds within 1 %) |" + "".join(f" {share:.1%} |" for share in SHARES))
    print("| --- |" + " ---: |" * len(SHARES))
    for name, rows in by_search.items():
        cells = []
        for values in zip(*rows, strict=True):
            close = sum(value <= CLOSE for value in values) / len(values)
            cells.append(f" {statistics.median(values):.1%} ({close:.0%}) |")
        print(f"| {name} |" + "".join(cells))


def _value(table: Table) -> Callable[[int], float]:
    return lambda index: table.curves[index].value


if __name__ == "__main__":
    main()
