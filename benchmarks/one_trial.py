"""One trial in our engine against the same trial in `transformers.Trainer`, in one run.

    python -m benchmarks.one_trial

Both train LoRA on the quickstart's base in nf4, on the quickstart's data, with the same recipe, for one
epoch and without evaluations; they take turns, and the ratio of their examples per second is printed.
What is compared is the loop alone: loading the base and measuring where the loss starts, which a trial does
once, are in neither figure.
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
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from search_spaces.definition import DataSpec, ModelSpec
from search_spaces.recipe import Recipe
from workers.base.base_model import load_base, pick_device
from workers.data.batches import collate
from workers.data.datasets import load_data
from workers.data.examples import Example
from workers.device.memory import tokens_per_forward
from workers.lora.adapters import AdapterHost
from workers.training.divergence import first_examples
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"


def ours(examples: list[Example], recipe: Recipe, device: torch.device) -> float:
    """Examples per second of our loop."""
    base = load_base(ModelSpec(id=str(QUICKSTART / "base")), device)
    host = AdapterHost(base)
    adapter = host.add("trial", recipe)
    passes = SharedPasses(host, token_budget=tokens_per_forward(device))
    start = passes.measure_start(adapter, first_examples(recipe, examples))
    run = TrialRun(recipe, adapter, examples, start=start, divergence_factor=100.0)
    started = time.perf_counter()
    while not run.finished:
        passes.finish_batch(run)
    wait(device)
    return run.examples_seen / (time.perf_counter() - started)


def trainer(examples: list[Example], recipe: Recipe, device: torch.device) -> float:
    """Examples per second of `transformers.Trainer`."""
    base = load_base(ModelSpec(id=str(QUICKSTART / "base")), device)
    config = LoraConfig(
        r=recipe.lora_r, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, config)

    def padded(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        def pad(key: str, value: int) -> torch.Tensor:
            rows = [row[key] for row in batch]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

        ids = pad("input_ids", base.pad_id)
        mask = pad("attention_mask", 0)
        return {"input_ids": ids, "labels": pad("labels", -100), "attention_mask": mask}

    rows = [
        {
            "input_ids": example.input_ids,
            "labels": example.labels,
            "attention_mask": torch.ones_like(example.input_ids),
        }
        for example in examples
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=recipe.batch_size,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.lr_scheduler,
            max_grad_norm=recipe.max_grad_norm,
            use_cpu=device.type == "cpu",
            bf16=base.compute_dtype == torch.bfloat16,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        loop = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=padded)
        started = time.perf_counter()
        loop.train()
        wait(device)
        return len(rows) * recipe.epochs / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def useful_share(examples: list[Example], batch_size: int) -> float:
    """Share of the padded batches' positions that hold a token, in the data's own order."""
    parts = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
    tokens = sum(len(example.input_ids) for example in examples)
    return tokens / sum(collate(part, 0).input_ids.numel() for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--device", help="cpu or cuda; the first CUDA device where there is one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/one_trial.json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device) if arguments.device else pick_device()
    base = load_base(ModelSpec(id=str(QUICKSTART / "base")), device)
    data = DataSpec(
        train=str(QUICKSTART / "train.jsonl"),
        eval=str(QUICKSTART / "eval.jsonl"),
        max_length=128,
        max_train_examples=arguments.rows,
    )
    examples = list(load_data(data, base)[0].examples)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, on {device}")
    print("| batch | useful tokens of whole batches | Trainer, examples/s | ours, examples/s | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    results = []
    for batch_size in (1, 4, 16):
        recipe = Recipe(batch_size=batch_size, learning_rate=1e-3)
        rounds = [
            (trainer(examples, recipe, device), ours(examples, recipe, device))
            for _ in range(arguments.rounds)
        ]
        theirs = statistics.median(a for a, _ in rounds)
        mine = statistics.median(b for _, b in rounds)
        ratio = statistics.median(b / a for a, b in rounds)
        results.append({"batch_size": batch_size, "trainer": theirs, "ours": mine, "ratio": ratio})
        share = useful_share(examples, batch_size)
        print(f"| {batch_size} | {share:.0%} | {theirs:.1f} | {mine:.1f} | {ratio:.2f} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2))
    print(f"speedup: {statistics.geometric_mean([r['ratio'] for r in results]):.2f}")


if __name__ == "__main__":
    main()
