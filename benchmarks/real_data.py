"""A study on real data, through the front door: `nightsweep serve` and REST.

    python -m benchmarks.real_data --data FOLDER

FOLDER holds GSM8K's `train.jsonl` and `test.jsonl` (grade-school mathematics; Cobbe et al. 2021, arXiv
2110.14168, MIT licence). The base is made here: a 6.9 M parameter Llama-style model and its tokenizer,
pretrained for a few minutes on rows that the study does not train on, so that nothing needs a model
hub. The study then tunes it with LoRA on an nf4 base, on 1,000 rows, over 8 TPE trials with ASHA.

Prints a table of the trials, the wall time and the peak memory of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings

TUNING_ROWS = 1_000
EVAL_ROWS = 150
CONTEXT = 256
VOCABULARY = 4_096
BATCH = 16


def study(base: Path, data: Path) -> dict[str, Any]:
    """The definition that is submitted."""
    return {
        "name": "gsm8k",
        "model": {"id": str(base), "quantization": "nf4"},
        "data": {
            "train": str(data / "train.jsonl"),
            "eval": str(data / "test.jsonl"),
            "format": "prompt_completion",
            "columns": {"prompt": "question", "completion": "answer"},
            "max_length": CONTEXT,
            "max_train_examples": TUNING_ROWS,
            "max_eval_examples": EVAL_ROWS,
        },
        "search": {
            "algorithm": "tpe",
            "trials": 8,
            "seed": 1,
            "space": {
                "learning_rate": {"min": 1e-4, "max": 2e-2, "scale": "log"},
                "batch_size": {"choices": [4, 8, 16]},
                "epochs": {"choices": [1, 2]},
                "weight_decay": {"min": 0.0, "max": 0.1},
                "lora_r": {"choices": [8, 16, 32]},
            },
        },
        "recipe": {"lr_scheduler": "cosine", "warmup_ratio": 0.1},
        "pruning": {"algorithm": "asha", "min_examples": 250, "n_min_trials": 1},
        "evaluation": {"every_examples": 250},
        "budget": {"max_parallel_trials": 8},
    }


def texts(data: Path) -> list[str]:
    """Question and answer of the rows the study does not train on."""
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    return [f"{row['question']}\n{row['answer']}" for row in rows[TUNING_ROWS:]]


def make_base(folder: Path, documents: list[str], *, minutes: float) -> int:
    """Train a tokenizer and a small model for about `minutes`; the number of its parameters."""
    torch.manual_seed(0)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=7,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    stream = torch.tensor([t for d in documents for t in [*tokenizer(d)["input_ids"], 1]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    started, step = time.monotonic(), 0
    while time.monotonic() - started < 60 * minutes:
        starts = torch.randint(0, len(stream) - CONTEXT, (BATCH,))
        rows = torch.stack([stream[s : s + CONTEXT] for s in starts])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"base: step {step}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


class MemoryWatch:
    """The largest sum of the proportional set sizes of this process and all it started, in bytes.

    Proportional: a page that n processes share counts 1/n in each.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.peak = max(self.peak, sum(_proportional_bytes(pid) for pid in _family(os.getpid())))


def _family(root: int) -> Iterator[int]:
    """`root` and all its descendants, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting.extend(children.get(pid, []))


def _proportional_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(lines[0][1]) * 1024 if lines else 0


def run_study(url: str, definition: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Submit over REST, wait for the end, and read the trials."""
    with httpx.Client(base_url=url, timeout=60) as client:
        answer = client.post("/v1/studies", json=definition)
        answer.raise_for_status()
        path = f"/v1/studies/{definition['name']}"
        while True:
            one = client.get(path).json()
            if one["ended_at"] is not None:
                return one, client.get(f"{path}/trials").json()["items"]
            time.sleep(2)


def table(trials: list[dict[str, Any]]) -> str:
    lines = [
        "| trial | state | learning rate | batch | epochs | weight decay | rank | examples | eval loss "
        "| train s | peak MB |",
        "| --- " * 11 + "|",
    ]
    for trial in trials:
        params, progress = trial["params"], trial["progress"] or {}
        batch, epochs = params["batch_size"], params["epochs"]
        value = trial["value"]
        last = trial["rungs"][-1]["value"] if trial["rungs"] else None
        shown = f"{value:.4f}" if value is not None else f"({last:.4f})" if last is not None else ""
        lines.append(
            f"| {trial['number']} | {trial['state']} | {params['learning_rate']:.2e} | {batch} | {epochs} "
            f"| {params['weight_decay']:.3f} | {params['lora_r']} "
            f"| {progress.get('examples_seen')} | {shown} | {trial['train_seconds'] or 0:.0f} "
            f"| {(trial['peak_memory_bytes'] or 0) / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--home", type=Path, default=Path("benchmarks/out/real_data"))
    parser.add_argument("--pretrain-minutes", type=float, default=4.0)
    arguments = parser.parse_args()
    home, data = arguments.home.resolve(), arguments.data.resolve()
    base = home / "base"
    if not (base / "model.safetensors").exists():
        parameters = make_base(base, texts(data), minutes=arguments.pretrain_minutes)
        print(f"base: {parameters:,} parameters in {base}")
    settings = Settings(
        home=home / time.strftime("service-%Y%m%d-%H%M%S"), data_roots=(home, data), port=free_port()
    )
    with MemoryWatch() as memory, Supervisor(settings) as server:
        started = time.monotonic()
        one, trials = run_study(server.url, study(base, data))
        seconds = time.monotonic() - started
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"study {one['state']}: {one['reason']}; counts {one['counts']}\n")
    print(table(trials))
    print(f"\nwall time {seconds:.0f} s; peak memory of all processes {memory.peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
