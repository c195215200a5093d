"""A DPO study with the reference that its trials share, and with one that each pass computes anew.

    python -m benchmarks.preference
    python -m benchmarks.preference --base FOLDER --quantization nf4

Trains and evaluates trials that differ in learning rate and rank, on pairs of random tokens, in one pack
without the service. Four ways to come by the log-probabilities of both answers under the base alone:

- in each pass: one more forward pass of the base before each training and evaluation pass (TRL's default);
- for each trial: once over the data before each trial (TRL's `precompute_ref_log_probs`), as seconds of the
  shared one times the trials;
- shared: once for all trials, computed;
- shared, from the disk: read, as every study after the first one on the same base and data does.

What is compared is training and evaluation; loading the base is in no figure. With `--threads 1` on a CPU the
processor's time is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.shapes import random_examples
from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase, load_base, pick_device
from workers.data.datasets import TokenizedData
from workers.data.examples import AnyExample, PairExample
from workers.device.heartbeat import UNWATCHED
from workers.device.memory import tokens_per_forward
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import RowGroup
from workers.training import evaluation, shared_pass
from workers.training.divergence import first_examples
from workers.training.objectives.pairs import PairBatch, PreferredPairs, answer_log_probabilities
from workers.training.objectives.references import shared_references
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"


class InEachPass(PreferredPairs):
    """Computes the reference of the pairs of a pass, in the forward pass of the base that it takes."""

    def __init__(self, host: AdapterHost) -> None:
        self._host = host

    @torch.no_grad()
    def collate(self, examples: Sequence[AnyExample], base: LoadedBase) -> PairBatch:
        batch = super().collate(examples, base)
        nobody = [RowGroup({}, batch.rows)]
        with self._host.multi_lora.running(
            nobody, tokens=batch.tokens, form="looped", device=base.device, row_lengths=batch.row_lengths
        ):
            references = answer_log_probabilities(base, batch.batch.to(base.device))
        return replace(batch, references=references)


def random_pairs(count: int, *, vocabulary: int, longest: int) -> TokenizedData:
    """Pairs of rows of which half the tokens carry loss."""
    rows = random_examples(
        2 * count, vocabulary=vocabulary, longest=longest, shortest=longest // 4, supervised=0.5
    )
    pairs = tuple(PairExample(*both) for both in zip(rows[::2], rows[1::2], strict=True))
    return TokenizedData(pairs, "preference", count, 0, 0, 1, 1)


def recipes(trials: int) -> list[Recipe]:
    """Of a search for the learning rate and the rank."""
    return [
        Recipe(
            learning_rate=10.0 ** -(4 + number / 8), lora_r=4 * 2 ** (number % 3), batch_size=8, seed=number
        )
        for number in range(trials)
    ]


def study(host: AdapterHost, train: TokenizedData, test: TokenizedData, trials: int, rungs: int) -> float:
    """Seconds to train the trials and evaluate them at each rung."""
    passes = SharedPasses(host, token_budget=tokens_per_forward(host.base.device))
    runs: list[TrialRun] = []
    started = clock(host.base.device)
    for recipe in recipes(trials):
        adapter = host.add(str(recipe.seed), recipe)
        start = passes.measure_start(adapter, first_examples(recipe, train.examples))
        runs.append(TrialRun(recipe, adapter, train.examples, start=start, divergence_factor=1e9))
    try:
        for rung in range(1, rungs + 1):
            while behind := [run for run in runs if run.steps < run.plan.total_steps * rung // rungs]:
                behind.sort(key=lambda run: run.steps)
                passes.train(behind)
            passes.evaluate(runs, test.examples)
        return clock(host.base.device) - started
    finally:
        for run in runs:
            host.remove(run.adapter.name)


def in_each_pass(host: AdapterHost, *data: TokenizedData, trials: int, rungs: int) -> float:
    """Seconds of the study if nothing is kept."""
    with ExitStack() as stack:
        for module in (evaluation, shared_pass):
            stack.enter_context(mock.patch.object(module, "objective_of", return_value=InEachPass(host)))
        return study(host, *data, trials, rungs)


def shared(
    host: AdapterHost, *data: TokenizedData, trials: int, rungs: int, cache_dir: str
) -> tuple[float, float]:
    """Seconds of the study, and how many of them its reference took."""
    started = clock(host.base.device)
    passes = SharedPasses(host, token_budget=tokens_per_forward(host.base.device))
    known = [shared_references(passes, some, UNWATCHED, cache_dir=cache_dir, origin="base") for some in data]
    reference = clock(host.base.device) - started
    return reference + study(host, known[0], known[1], trials, rungs), reference


def clock(device: torch.device) -> float:
    """Seconds, when everything before is done; of the processor's time where one thread computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()  # on a busy machine the clock on the wall runs on while others compute
    return time.perf_counter()


def measure(host: AdapterHost, *data: TokenizedData, trials: int, rungs: int) -> dict[str, float]:
    """One round: seconds of each way."""
    options: dict[str, Any] = {"trials": trials, "rungs": rungs}
    with tempfile.TemporaryDirectory() as folder:
        found = {"in each pass": in_each_pass(host, *data, **options)}
        found["shared"], reference = shared(host, *data, **options, cache_dir=folder)
        found["shared, from the disk"], _ = shared(host, *data, **options, cache_dir=folder)
        found["for each trial"] = found["shared"] + (trials - 1) * reference
        found["the reference itself"] = reference
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, default=QUICKSTART / "base", help="folder of a causal model")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--rows", type=int, default=240, help="pairs to train on; a quarter more to evaluate")
    parser.add_argument("--longest", type=int, default=96, help="tokens of a row")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rungs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--device", help="cpu or cuda; the first CUDA device where there is one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/preference.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device) if arguments.device else pick_device()
    spec = ModelSpec(id=str(arguments.base), quantization=arguments.quantization)
    host = AdapterHost(load_base(spec, device, task="preference"))
    data = [
        random_pairs(count, vocabulary=host.base.vocabulary_size, longest=arguments.longest)
        for count in (arguments.rows, max(1, arguments.rows // 4))
    ]
    load = os.getloadavg()[0]
    rounds = [
        measure(host, *data, trials=arguments.trials, rungs=arguments.rungs) for _ in range(arguments.rounds)
    ]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, on {device}; load"
        f" {load:.1f} before and {os.getloadavg()[0]:.1f} after. {arguments.trials} trials,"
        f" {arguments.rows} pairs, {arguments.rungs} evaluations on {len(data[1].examples)} pairs."
    )
    print("| reference | seconds (median) | against the shared one |\n| --- | ---: | ---: |")
    medians = {way: statistics.median(one[way] for one in rounds) for way in rounds[0]}
    for way, seconds in medians.items():
        ratio = statistics.median(one[way] / one["shared"] for one in rounds)
        print(f"| {way} | {seconds:.2f} | {ratio:.2f} |")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rounds, indent=2))


if __name__ == "__main__":
    main()
