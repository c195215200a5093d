"""Lets a tuned adapter answer held-out requests, beside the base model, with nothing but PEFT.

    python generate.py ADAPTER_FOLDER [--rows 3]

Prints the request, the base's answer, the tuned answer and the expected one for a few rows of
`eval.jsonl`, and then the share of all its rows that each answers exactly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
BATCH = 24


def load(base: Path, adapter: Path, quantization: str) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The base, quantized as it was when the adapter was trained, with the adapter on it."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        device_map="cpu",
        quantization_config=nf4 if quantization == "nf4" else None,
    )
    return PeftModel.from_pretrained(model, adapter), AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def answers(model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
    """The most probable continuation of each prompt, up to the end token or 60 tokens."""
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer(
            prompts[start : start + BATCH],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a tuned adapter with the base model.")
    parser.add_argument("adapter", type=Path, help="a folder with adapter_config.json")
    parser.add_argument("--base", type=Path, default=HERE / "base")
    parser.add_argument("--eval", type=Path, default=HERE / "eval.jsonl")
    parser.add_argument("--rows", type=int, default=3, help="how many answers to show")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.eval.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    model, tokenizer = load(arguments.base, arguments.adapter, arguments.quantization)

    tuned = answers(model, tokenizer, prompts)
    with model.disable_adapter():
        base = answers(model, tokenizer, prompts)

    for row, from_base, from_tuned in list(zip(rows, base, tuned, strict=True))[: arguments.rows]:
        print(f"request   {row['prompt']}")
        print(f"base      {from_base!r}")
        print(f"tuned     {from_tuned}")
        print(f"expected  {row['completion']}\n")
    for name, texts in (("base", base), ("tuned", tuned)):
        right = sum(text.strip() == row["completion"] for text, row in zip(texts, rows, strict=True))
        print(f"{name:5}  {right} of {len(rows)} answers exactly right ({right / len(rows):.0%})")


if __name__ == "__main__":
    main()
