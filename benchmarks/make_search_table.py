"""Trains a whole grid of recipes on the quickstart and keeps every rung: what `search_quality` replays.

    python -m benchmarks.make_search_table [--grid NAME] [--base FOLDER] [--out FILE] [--processes N]

One process per core, each with a pack of the service's own engine on one thread. Nothing is pruned, so a
search that is replayed on the table may prune where it likes. A run that is cut short goes on from the
lines it has written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
DATA = Path(__file__).resolve().parent / "data"

EVERY_EXAMPLES = 150
FIXED: Mapping[str, Any] = {"lora_alpha_ratio": 2, "lr_scheduler": "cosine", "warmup_ratio": 0.1}
"""As in the quickstart's study."""

GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    # The five hyperparameters of the quickstart's study; the rates are three to a decade.
    "quickstart": {
        "learning_rate": (1e-4, 2.2e-4, 4.6e-4, 1e-3, 2.2e-3, 4.6e-3, 1e-2, 2.2e-2),
        "batch_size": (4, 8, 16, 32),
        "epochs": (1, 2, 3),
        "weight_decay": (0.0, 0.1),
        "lora_r": (4, 32),
    },
    # Where the best rate lies on another base.
    "rates": {
        "learning_rate": (
            1e-5,
            2.2e-5,
            4.6e-5,
            1e-4,
            2.2e-4,
            4.6e-4,
            1e-3,
            2.2e-3,
            4.6e-3,
            1e-2,
            2.2e-2,
            4.6e-2,
        ),
        "batch_size": (8, 32),
        "epochs": (2,),
        "lora_r": (16,),
    },
}


def points(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every recipe of a grid, the last field varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def longest_first(recipes: Sequence[Mapping[str, float]]) -> list[int]:
    """Indices in the order of training: the longest first, so that no process is left with one at the end."""
    return sorted(range(len(recipes)), key=lambda i: (-recipes[i]["epochs"], recipes[i]["batch_size"], i))


def _train(shares: tuple[int, Sequence[tuple[int, dict[str, float]]]], base: str, part: Path) -> None:
    """Trains a share of the recipes in one pack, and writes a line for each that has ended."""
    import torch

    from search_spaces.parsing.document import parse_definition
    from search_spaces.recipe import Recipe
    from workers.contract import Event, Report, TrialOrder, TrialOutcome
    from workers.pack.pack import Pack

    torch.set_num_threads(1)
    number, share = shares
    definition = parse_definition(
        {
            "name": "table",
            "model": {"id": base, "quantization": "nf4"},
            "data": {
                "train": str(QUICKSTART / "train.jsonl"),
                "eval": str(QUICKSTART / "eval.jsonl"),
                "format": "prompt_completion",
                "max_length": 96,
            },
            "search": {"algorithm": "random", "trials": 1, "space": {"learning_rate": {"choices": [1e-4]}}},
            "evaluation": {"every_examples": EVERY_EXAMPLES},
        }
    )
    rungs: dict[int, list[tuple[int, float]]] = {}
    ends: dict[int, TrialOutcome] = {}

    def take(event: Event) -> None:
        if isinstance(event, Report):
            rungs.setdefault(event.attempt_id, []).append((event.rung, event.metrics["eval_loss"]))
        elif isinstance(event, TrialOutcome):
            ends[event.attempt_id] = event

    pack = Pack(take, device=torch.device("cpu"), progress_interval_s=1e9)
    waiting = list(share)
    params = dict(share)
    done: set[int] = set()
    with tempfile.TemporaryDirectory() as folder, part.open("a") as out:
        while waiting or pack.running_attempts:
            while waiting and len(pack.running_attempts) < pack.slots:
                index, values = waiting[0]
                order = TrialOrder(
                    attempt_id=index,
                    study_id="table",
                    trial_number=index,
                    model=definition.model,
                    data=definition.data,
                    recipe=Recipe.build({**FIXED, **values}),
                    objective=definition.objective,
                    evaluation=definition.evaluation,
                    micro_batch_size=None,
                    artifact_dir=f"{folder}/{index}",
                )
                if not pack.accepts(order):
                    break
                waiting.pop(0)
                pack.admit(order)
            pack.step()
            for index in sorted(set(ends) - done):
                done.add(index)
                end = ends[index]
                if end.status not in ("completed", "diverged"):
                    raise RuntimeError(f"{params[index]} ended {end.status}: {end.reason}")
                line = {
                    "index": index,
                    "params": params[index],
                    "ended": str(end.status),
                    "examples": end.examples_seen,
                    "rungs": rungs.get(index, []),
                }
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(f"[{number}] {len(done)}/{len(share)} {params[index]} {end.value}", flush=True)


def _written(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        if part.exists():
            yield from (json.loads(line) for line in part.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--grid", choices=sorted(GRIDS), default="quickstart")
    parser.add_argument("--base", type=Path, default=QUICKSTART / "base")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    out = arguments.out or DATA / f"{arguments.grid}.json"
    out.parent.mkdir(exist_ok=True)

    recipes = points(GRIDS[arguments.grid])
    parts = [out.with_suffix(f".{number}.part") for number in range(arguments.processes)]
    done = {line["index"] for line in _written(parts)}
    left = [index for index in longest_first(recipes) if index not in done]
    shares = [
        (number, [(index, recipes[index]) for index in left[number :: arguments.processes]])
        for number in range(arguments.processes)
    ]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_train, args=(share, str(arguments.base.resolve()), parts[share[0]]))
        for share in shares
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = {line["index"]: line for line in _written(parts)}
    if set(lines) != set(range(len(recipes))):
        raise SystemExit(f"{len(lines)} of {len(recipes)} recipes have ended; run it again to go on")
    table = {
        "grid": GRIDS[arguments.grid],
        "fixed": dict(FIXED),
        "every_examples": EVERY_EXAMPLES,
        "columns": ["ended", "examples", "rungs"],
        # One line per recipe, in the order of the grid; losses to six digits.
        "trials": [
            [
                lines[index]["ended"],
                lines[index]["examples"],
                [[rung, float(f"{value:.6g}")] for rung, value in lines[index]["rungs"]],
            ]
            for index in range(len(recipes))
        ],
    }
    head = {key: value for key, value in table.items() if key != "trials"}
    rows = ",\n".join(json.dumps(row) for row in table["trials"])  # type: ignore[attr-defined]
    out.write_text(json.dumps(head, indent=1)[:-2] + ',\n "trials": [\n' + rows + "\n]}\n")
    for part in parts:
        part.unlink()
    print(f"{len(recipes)} recipes in {out}")


if __name__ == "__main__":
    main()
