"""A sweep as one writes it without Nightsweep: Optuna, `transformers.Trainer`, PEFT and bitsandbytes.

    python benchmarks/plain_script.py WORK.json RESULT.json

One trial after another with all cores. Imports nothing of this project. WORK names the base, the data, the
recipes, and the order of the training rows, which is given so that another program can train the same.

Written to be fast where that costs no line that people leave out: rows are tokenised once, batches padded
to their longest row, evaluation rows sorted by length in larger batches, AdamW fused, nothing logged, no
checkpoints.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import optuna
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

Rows = list[dict[str, torch.Tensor]]
IMPORTED_AT = time.time()


def tokenize(file: str, limit: int, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
    """Rows of a prompt, which carries no loss, a completion and an end token, which do."""
    rows = []
    for line in Path(file).read_text().splitlines()[:limit]:
        row = json.loads(line)
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *completion, tokenizer.eos_token_id][:max_length]
        labels = [*[-100] * len(prompt), *ids[len(prompt) :]]
        rows.append(
            {
                "input_ids": torch.tensor(ids),
                "labels": torch.tensor(labels),
                "attention_mask": torch.ones(len(ids), dtype=torch.int64),
            }
        )
    return rows


class GivenOrder(torch.utils.data.Sampler[int]):
    """The training rows in the order of WORK, one list of indices per epoch."""

    def __init__(self, epochs: list[list[int]]) -> None:
        self._epochs = epochs
        self._next = 0

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __iter__(self) -> Iterator[int]:
        self._next += 1
        return iter(self._epochs[self._next - 1])


class PlainTrainer(Trainer):
    """Trainer with a given data order and an evaluation loss that is a mean over tokens.

    Trainer's own evaluation loss is a mean over batches, weighted by their rows.
    """

    def __init__(self, *args: Any, order: list[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eval_losses: list[float] = []
        self.eval_seconds = 0.0
        self._order = GivenOrder(order)

    def _get_train_sampler(self, *args: Any) -> GivenOrder:
        return self._order

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        # Trainer has put the model into eval mode. There, on a CPU with AVX512-BF16, a 4-bit layer repacks
        # its weight for inference, and what is trained after that is another model: worse, by a sixth and
        # more in loss.
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                module.train()
        inputs = self._prepare_inputs(inputs)
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        with torch.no_grad():
            loss = model(**inputs).loss
        self._loss_sum += float(loss * tokens)
        self._tokens += int(tokens)
        return loss, None, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        self._loss_sum, self._tokens = 0.0, 0
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.eval_losses.append(self._loss_sum / self._tokens)
        self.eval_seconds += time.perf_counter() - started
        return metrics


def load_base(folder: str) -> PreTrainedModel:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )


def pad(rows: Rows) -> dict[str, torch.Tensor]:
    """A batch, padded on the right to its longest row."""
    filler = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)
        for key, value in filler.items()
    }


def train(
    work: dict[str, Any], recipe: dict[str, Any], rows: Rows, eval_rows: Rows, folder: Path
) -> dict[str, Any]:
    """Train one recipe from the base to a saved adapter; its evaluation losses and where the time went."""
    started = time.perf_counter()
    model = load_base(work["base"])
    loaded = time.perf_counter()
    set_seed(recipe["seed"])
    config = LoraConfig(
        r=recipe["lora_r"],
        lora_alpha=recipe["lora_alpha_ratio"] * recipe["lora_r"],
        lora_dropout=recipe["lora_dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe["batch_size"],
        per_device_eval_batch_size=work["eval_batch_size"],
        num_train_epochs=recipe["epochs"],
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        adam_beta1=recipe["adam_beta1"],
        adam_beta2=recipe["adam_beta2"],
        adam_epsilon=recipe["adam_epsilon"],
        max_grad_norm=recipe["max_grad_norm"],
        lr_scheduler_type=recipe["lr_scheduler"],
        warmup_steps=recipe["warmup_ratio"],  # below 1 it is a share of all steps
        optim="adamw_torch_fused",
        eval_strategy="steps",  # and at the end
        eval_steps=math.ceil(work["eval_every_examples"] / recipe["batch_size"]),
        seed=recipe["seed"],
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        prediction_loss_only=True,
    )
    trainer = PlainTrainer(
        get_peft_model(model, config),
        arguments,
        data_collator=pad,
        train_dataset=rows,
        eval_dataset=eval_rows,
        order=work["order"],
    )
    ready = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    trainer.model.save_pretrained(folder)
    saved = time.perf_counter()
    return {
        "eval_losses": trainer.eval_losses,
        "train_seconds": trained - ready - trainer.eval_seconds,
        "eval_seconds": trainer.eval_seconds,
        "other_seconds": ready - started + saved - trained,
        "load_seconds": loaded - started,
    }


def main() -> None:
    work_file, result_file = map(Path, sys.argv[1:])
    work = json.loads(work_file.read_text())
    tokenizer = AutoTokenizer.from_pretrained(work["base"])
    rows = tokenize(work["train"], work["train_rows"], tokenizer, work["max_length"])
    eval_rows = tokenize(work["eval"], work["eval_rows"], tokenizer, work["max_length"])
    eval_rows.sort(key=lambda row: len(row["input_ids"]))
    tokenized_at = time.time()
    results: list[dict[str, Any]] = []

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_categorical(name, values) for name, values in work["space"].items()}
        folder = result_file.parent / f"adapter-{trial.number}"
        result = train(work, {**work["recipe"], **chosen}, rows, eval_rows, folder)
        results.append({"number": trial.number, "params": chosen, **result})
        print(f"trial {trial.number}: {chosen}, eval losses {result['eval_losses']}", flush=True)
        return float(min(result["eval_losses"]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for point in work["points"]:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=len(work["points"]))
    result = {
        "imported_at": IMPORTED_AT,
        "tokenized_at": tokenized_at,
        "threads": torch.get_num_threads(),
        "best": {"number": study.best_trial.number, "value": study.best_value},
        "trials": results,
        "ended_at": time.time(),
    }
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
