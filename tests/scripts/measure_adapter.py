"""Measure an adapter's eval loss with transformers, PEFT and bitsandbytes alone; prints JSON.

python measure_adapter.py BASE ADAPTER EVAL.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def main(base: str, adapter: str, data: str) -> None:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, device_map="cpu", dtype=torch.float32
    )
    model = PeftModel.from_pretrained(model, adapter)
    total, tokens = 0.0, 0
    for line in Path(data).read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        completion = [*completion, tokenizer.eos_token_id]
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        # Autograd stays on: without it, bitsandbytes repacks 4-bit weights for inference in bfloat16.
        loss = model(input_ids=ids, labels=labels).loss
        total += loss.item() * len(completion)
        tokens += len(completion)
    sys.stdout.write(json.dumps({"eval_loss": total / tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
