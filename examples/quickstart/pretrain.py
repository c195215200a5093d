"""Pretrains the quickstart's base model from nothing: tokenizer, weights, and the folder `base/`.

    python pretrain.py [--out FOLDER]

Took 21 minutes on two cores of a busy machine. Short runs on one machine give the same weights bit for
bit; with another torch version or processor, floating-point sums round differently.

The shape is chosen for its use. Every width is a multiple of 64, the block of bitsandbytes' NF4, so no
block straddles two rows. Two million parameters in float32 are 8 MB: small enough to commit, and what is
stored is exactly what a CPU worker computes with, whichever dtype a loader asks for by default.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pretraining_text import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 3
THREADS = 2
"""Part of the recipe: another number adds up the same sums in another order."""
END, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 1280
POSITIONS = 256

DOCUMENTS = 250_000
HELD_OUT_SEED = 11
SEQUENCE = 128
BATCH = 16
PEAK_RATE = 3e-3
WARMUP_STEPS = 50

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'assistant: ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text has tokens, and none is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=POSITIONS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def token_rows(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]) -> torch.Tensor:
    """All documents one after another, each ended by `<|end|>`, cut into rows [N, SEQUENCE]."""
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for document in encoded for token in (*document, end)])
    return ids[: len(ids) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def rate_at(step: int, steps: int) -> float:
    """The learning rate: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    share = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def train(model: LlamaForCausalLM, rows: torch.Tensor, held_out: torch.Tensor) -> None:
    """One pass over the text: no row is seen twice."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
    steps = len(rows) // BATCH
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        batch = rows[order[step * BATCH : (step + 1) * BATCH]]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step + 1}/{steps}  train loss {loss.item():.4f}  "
                f"held-out loss {loss_on(model, held_out):.4f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    return float(model(input_ids=rows, labels=rows).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the quickstart's base model.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "base")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="fewer for a quick look")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(documents(20_000))
    rows = token_rows(tokenizer, documents(arguments.documents))
    held_out = token_rows(tokenizer, documents(400, seed=HELD_OUT_SEED))
    model = new_model(tokenizer)
    print(
        f"{rows.numel():,} tokens, {model.num_parameters():,} parameters, {torch.get_num_threads()} threads"
    )

    train(model, rows, held_out)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
