"""The engine alone: trials x tokens per second of packs of 1 to 32 trials, on any device.

    python -m benchmarks.pack
    python -m benchmarks.pack --shape qwen2.5-0.5b --rank 32 --batch-sizes 1 --tokens 512 --shortest 512

Every trial has its own adapter, optimizer and rows; all are trained on one quantized base with random
weights. Measured in turns, in one process:

- plain: a QLoRA loop without this project, one trial after another (`benchmarks.plain_loop`).
- one at a time: one of the trials alone. Training them one after the other goes at this rate.
- looped: all of them in shared passes, with two small products for each adapter and layer.
- batched, grouped: the same with products for all adapters in neighbouring slots of a bank (`--form`).
- packed: all of them in shared passes, in the form that the engine chooses for the device. On a CPU that
  is the looped one, and it is not measured twice.

A pass is as large as the engine finds worth while after a few of them (`--token-budget` overrides it), one
at a time as packed. Rates count tokens of rows, not padding. "Useful" is their share in the packed passes;
one trial with one row per step pads nothing.

The last line is the best of packed over one at a time at the smallest batch size. At the largest, where
one trial alone fills the device, packing is there to cost nothing: that ratio is printed before it.
Needs neither Ray nor the service.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.alike_trials import ALONE, FORMS, LEAST_SECONDS, Bench, Row
from benchmarks.arithmetic import flops_per_token, matrix_product_peak
from benchmarks.plain_loop import plain_tokens_per_second
from benchmarks.shapes import SHAPES, parameters, random_base, random_examples
from search_spaces.definition import KeepDecoded, ModelSpec
from search_spaces.recipe import Quantization, Recipe
from workers.base.base_model import LoadedBase, checkpoint_activations, pick_device
from workers.base.decoded_weights import keep_decoded
from workers.data.examples import Example
from workers.device.memory import is_out_of_memory, release
from workers.lora.multi_lora import Form

EXAMPLES = 64
GIB = 2**30


def measure_all(
    base: LoadedBase, options: argparse.Namespace, examples: Sequence[Example], peak: float | None
) -> Iterator[Row]:
    """The table's rows, each printed as soon as it is there."""
    print(header(options.form, with_peak=peak is not None), flush=True)
    notes = []
    for batch_size in options.batch_sizes:
        recipe = Recipe(
            batch_size=batch_size,
            epochs=10_000,  # no trial comes to its end
            learning_rate=1e-6,
            lora_r=options.rank,
            lora_dropout=options.dropout,
        )
        plain = plain_tokens_per_second(
            base, examples, recipe, rounds=options.rounds, least_seconds=LEAST_SECONDS
        )
        keep_decoded(base, options.keep_decoded)
        bench = Bench(base, examples, recipe, options.token_budget)
        flops = flops_per_token(bench.host, bench.runs[0].adapter, supervised=options.supervised)
        notes.append(
            f"with {batch_size} rows per step the engine would hold {bench.capacity.trials} trials"
            f" ({bench.capacity.reason}) in passes of at most {bench.capacity.pass_tokens:,} tokens"
        )
        for trials in options.trials:
            try:
                bench.grow(trials)
                row = bench.row(
                    options.form, steps=options.steps, rounds=options.rounds, flops=flops, peak=peak
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                notes.append(f"{trials} trials with {batch_size} rows per step do not fit into memory")
                break
            print(line(row, options.form, plain), flush=True)
            yield row
        bench.close()
    print("\n" + "\n".join(f"- {note}" for note in notes))


def header(forms: Sequence[Form], *, with_peak: bool) -> str:
    columns = ["batch", "trials", "plain", ALONE, *forms, "packed", "packed / one at a time", "useful tokens"]
    columns += ["tokens a pass", "peak memory, GiB", *(["share of peak"] if with_peak else [])]
    return f"| {' | '.join(columns)} |\n|{' ---: |' * len(columns)}"


def line(row: Row, forms: Sequence[Form], plain: float) -> str:
    rates = row.tokens_per_second
    cells = [
        str(row.batch_size),
        str(row.trials),
        f"{plain:,.0f}",
        f"{rates[ALONE]:,.0f}",
        *(f"{rates[form]:,.0f}" for form in forms),
        f"{rates[row.packed]:,.0f} ({row.packed})",
        f"{row.speedup:.2f}",
        f"{row.useful:.0%}",
        f"{row.tokens_per_pass:,.0f}",
        f"{row.peak_bytes / GIB:.2f}",
    ]
    if row.share_of_peak is not None:
        cells.append(f"{row.share_of_peak:.1%}")
    return f"| {' | '.join(cells)} |"


def best_at(rows: Sequence[Row], batch_size: int) -> Row:
    """The row in which packing gains most."""
    return max((row for row in rows if row.batch_size == batch_size), key=lambda row: row.speedup)


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **{name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return sorted({int(part) for part in text.split(",")})

    def forms(text: str) -> list[Form]:
        named = FORMS if text == "all" else tuple(text.split(","))
        if unknown := set(named) - set(FORMS):
            raise argparse.ArgumentTypeError(f"no form {', '.join(unknown)}; there are {', '.join(FORMS)}")
        return [form for form in FORMS if form in named]

    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="quickstart")
    add("--device", default=None, help="cpu or cuda; the first CUDA device where there is one")
    add("--quantization", choices=get_args(Quantization), default="nf4")
    add("--compute-dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--trials", type=numbers, default="1,2,4,8,16,32")
    add("--batch-sizes", type=numbers, default="1,8,32", help="rows per optimizer step of a trial")
    add("--rank", type=int, default=16)
    add("--dropout", type=float, default=0.0, help="LoRA dropout")
    add("--tokens", type=int, default=64, help="of the longest row")
    add("--shortest", type=int, default=None, help="tokens of the shortest row; half the longest")
    add("--supervised", type=float, default=0.5, help="share of a row that carries loss")
    add("--form", type=forms, default="looped", help="forms with a column of their own, or all")
    add("--steps", type=int, default=1, help="optimizer steps of each trial in one measurement, at least")
    add("--rounds", type=int, default=3, help="measurements of everything; medians are shown")
    add("--token-budget", type=int, default=None, help="padded tokens in a pass; what the engine measures")
    add("--keep-decoded", choices=get_args(KeepDecoded), default="auto", help="as resources.keep_decoded")
    add("--gradient-checkpointing", action="store_true")
    add("--threads", type=int, default=None, help="of torch on a CPU")
    add("--out", type=Path, default=Path("benchmarks/out/pack.json"))
    options = parser.parse_args(arguments)
    options.shortest = options.tokens // 2 if options.shortest is None else options.shortest
    if not 2 <= options.shortest <= options.tokens:
        parser.error(f"--shortest is {options.shortest}; it must be from 2 to --tokens, {options.tokens}")
    return options


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device) if options.device else pick_device()
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    spec = ModelSpec(id=options.shape, quantization=options.quantization, compute_dtype=options.compute_dtype)
    started = time.perf_counter()
    base = random_base(options.shape, SHAPES[options.shape](), spec, device)
    checkpoint_activations(base.model, options.gradient_checkpointing)
    examples = random_examples(
        EXAMPLES,
        vocabulary=base.vocabulary_size,
        longest=options.tokens,
        shortest=options.shortest,
        supervised=options.supervised,
    )
    facts = machine(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"{options.shape}: {parameters(base.model):,} parameters in {options.quantization}, built in"
        f" {time.perf_counter() - started:.1f} s; LoRA rank {options.rank} on all linear layers, dropout"
        f" {options.dropout:g}; rows of {options.shortest} to {options.tokens} tokens"
    )
    peak = None
    if device.type == "cuda":
        peak = matrix_product_peak(device, base.compute_dtype)
        dtype = str(base.compute_dtype).removeprefix("torch.")
        print(f"one 8192 x 8192 x 8192 product in {dtype}: {peak / 1e12:.0f} TFLOP/s")
        release(device)
    print("rates in tokens per second, all trials together\n")
    rows = list(measure_all(base, options, examples, peak))
    smallest, largest = (best_at(rows, batch) for batch in (options.batch_sizes[0], options.batch_sizes[-1]))
    saturated = [row.speedup for row in rows if row.batch_size == largest.batch_size]
    print(
        f"- with {largest.batch_size} rows per step, packed is {min(saturated):.2f} to {max(saturated):.2f}"
        " times one at a time"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": facts,
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "matrix_product_peak": peak,
        "rows": [asdict(row) for row in rows],
        "speedup": smallest.speedup,
    }
    options.out.write_text(json.dumps(result, indent=2))
    print(f"speedup: {smallest.speedup:.2f}")


if __name__ == "__main__":
    main()
