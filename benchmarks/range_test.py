"""Does the learning-rate range test find bounds that hold the best learning rate?

    python -m benchmarks.range_test [--seeds 42 1 2] [--keep]

Sweeps the corners of the quickstart's space on two base models with the service's own engine, and compares
the proposed bounds with where real fine-tunes are best: the tables of `make_search_table`. The second base is
made by `python -m benchmarks.second_base`; without it only the first is shown. Exits 1 where the bounds do
not hold the best rate, or are wider than a third of 1e-6 to 1, in decades. `--keep` writes the curves to
`data/rate-curves.json`, from which a test reads them again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.make_search_table import DATA, QUICKSTART
from benchmarks.second_base import OUT as SECOND_BASE
from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.range_tests.analysis import Corner, analyse, in_bounds, in_rate, narrow, propose
from search_spaces.range_tests.derivation import derive

ALLOWED = (1e-6, 1.0)
"""What the space gives the learning rate: six decades."""
MOST_DECADES = math.log10(ALLOWED[1] / ALLOWED[0]) / 3


@dataclass(frozen=True)
class Best:
    """The best recipe of a table."""

    learning_rate: float
    value: float
    params: Mapping[str, Any]


def definition_of(base: Path, seed: int) -> StudyDefinition:
    """The quickstart's study over a wide range of rates."""
    space = {
        "learning_rate": {"min": ALLOWED[0], "max": ALLOWED[1], "scale": "log"},
        "batch_size": {"choices": [4, 8, 16, 32]},
        "lora_r": {"choices": [4, 8, 16, 32]},
    }
    return parse_definition(
        {
            "name": "range-test",
            "model": {"id": str(base), "quantization": "nf4"},
            "data": {
                "train": str(QUICKSTART / "train.jsonl"),
                "eval": str(QUICKSTART / "eval.jsonl"),
                "format": "prompt_completion",
                "max_length": 96,
            },
            "search": {"algorithm": "tpe", "trials": 16, "space": space, "learning_rate_range_test": True},
            "recipe": {"lora_alpha_ratio": 2, "lr_scheduler": "cosine", "warmup_ratio": 0.1, "seed": seed},
        }
    )


def sweep(definition: StudyDefinition) -> list[list[tuple[float, float]]]:
    """The curves of all corners, in one pack on one thread, as the service sweeps them."""
    import torch

    from search_spaces.definition import build_recipe
    from workers.contract import Event, RateSweep, TrialOrder, TrialOutcome
    from workers.pack.pack import Pack

    torch.set_num_threads(1)
    test = definition.search.learning_rate_range_test
    assert test is not None
    ends: dict[int, TrialOutcome] = {}

    def take(event: Event) -> None:
        if isinstance(event, TrialOutcome):
            ends[event.attempt_id] = event

    pack = Pack(take, device=torch.device("cpu"), progress_interval_s=1e9)
    corners = list(definition.search.space.grid_points())
    waiting = list(enumerate(corners))
    with tempfile.TemporaryDirectory() as folder:
        while waiting or pack.running_attempts:
            while waiting:
                number, values = waiting[0]
                order = TrialOrder(
                    attempt_id=number,
                    study_id="range-test",
                    trial_number=number,
                    model=definition.model,
                    data=definition.data,
                    recipe=build_recipe(definition, values),
                    objective=definition.objective,
                    evaluation=definition.evaluation,
                    micro_batch_size=None,
                    artifact_dir=f"{folder}/{number}",
                    rate_sweep=RateSweep(first=test.min, last=test.max, steps=test.steps),
                )
                if not pack.accepts(order):
                    break
                waiting.pop(0)
                pack.admit(order)
            pack.step()
    for end in ends.values():
        if end.status != "completed":
            raise RuntimeError(f"a sweep ended {end.status}: {end.reason}")
    return [list(ends[number].rate_curve) for number in range(len(corners))]


def read(definition: StudyDefinition, curves: Sequence[Sequence[tuple[float, float]]]) -> list[Corner]:
    """What the curves of a derived definition's corners say."""
    test = definition.search.learning_rate_range_test
    assert test is not None
    corners = definition.search.space.grid_points()
    return [analyse(curve, values, steps=test.steps) for curve, values in zip(curves, corners, strict=True)]


def best_of(table: Path) -> Best:
    """The recipe with the lowest eval loss at any of its rungs."""
    document = json.loads(table.read_text())
    recipes = itertools.product(*document["grid"].values())
    results = [
        (min(value for _, value in rungs), dict(zip(document["grid"], recipe, strict=True)))
        for recipe, (_, _, rungs) in zip(recipes, document["trials"], strict=True)
        if rungs
    ]
    value, params = min(results, key=lambda result: result[0])
    return Best(params["learning_rate"], value, params)


def show(base: str, folder: Path, table: Path, seeds: Sequence[int], kept: list[dict[str, Any]]) -> bool:
    """Prints one base's corners and bounds; whether they are as they should be. Adds the curves to `kept`."""
    best = best_of(table)
    described = ", ".join(f"{name} {value:g}" for name, value in best.params.items())
    print(f"\n{base}: best of {table.name}: eval loss {best.value:.4g} at {described}")
    print(f"{'seed':>4}  {'corner':<18} {'steepest':>9} {'lowest':>9} {'diverged':>9}")
    right = True
    for seed in seeds:
        definition = derive(definition_of(folder, seed), "range-test")
        curves = sweep(definition)
        corners = read(definition, curves)
        short = [[[float(f"{number:.5g}") for number in point] for point in curve] for curve in curves]
        kept.append({"table": table.name, "seed": seed, "curves": short})
        for corner in corners:
            rates = (corner.steepest, corner.minimum, corner.divergence)
            columns = " ".join(f"{in_rate(rate) if rate else '-':>9}" for rate in rates)
            print(f"{seed:>4}  {corner.label:<18} {columns}")
        bounds = narrow(propose(corners).bounds, ALLOWED).bounds
        assert bounds is not None
        decades = math.log10(bounds[1] / bounds[0])
        inside = bounds[0] <= best.learning_rate <= bounds[1]
        right = right and inside and decades <= MOST_DECADES
        print(
            f"{seed:>4}  bounds {in_bounds(bounds)}, {decades:.2f} of {3 * MOST_DECADES:g} decades;"
            f" the best rate, {in_rate(best.learning_rate)}, is {'inside' if inside else 'OUTSIDE'}",
            flush=True,
        )
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--keep", action="store_true", help="write the curves to data/rate-curves.json")
    arguments = parser.parse_args()
    bases = [("quickstart (Llama, 2 million parameters)", QUICKSTART / "base", DATA / "quickstart.json")]
    if SECOND_BASE.exists():
        table = DATA / "rates-second-base.json"
        bases.append(("second base (GPT-NeoX, 2 million parameters)", SECOND_BASE, table))
    else:
        print("The second base is not there; make it with: python -m benchmarks.second_base")
    kept: list[dict[str, Any]] = []
    right = [show(*base, arguments.seeds, kept) for base in bases]
    if arguments.keep:
        lines = ",\n".join(json.dumps(sweeps) for sweeps in kept)
        (DATA / "rate-curves.json").write_text(f"[\n{lines}\n]\n")
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
