"""Pretrains a second small base model, of another architecture than the quickstart's and much shorter.

    python -m benchmarks.second_base [--out FOLDER]

Where a claim should not hold for one model only, the benchmarks show it on this one too. It is a GPT-NeoX:
layer norms with biases, a fused projection of queries, keys and values, attention and MLP side by side, no
gate in the MLP, an output head of its own. It is wide and shallow where the quickstart's Llama is narrow and
deep, and has seen an eighth of the text. About four minutes on one core; with another torch version or
processor, floating-point sums round differently.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
OUT = Path(__file__).resolve().parent / "out" / "second-base"

DOCUMENTS = 30_000
SEED = 5


def new_model(tokenizer: PreTrainedTokenizerFast, positions: int) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    return GPTNeoXForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the benchmarks' second base model.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="fewer for a quick look")
    arguments = parser.parse_args()

    # The quickstart's scripts import each other by name, as scripts in one folder do.
    sys.path.insert(0, str(QUICKSTART))
    import pretrain
    from pretraining_text import documents

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = pretrain.train_tokenizer(documents(20_000))
    rows = pretrain.token_rows(tokenizer, documents(arguments.documents))
    held_out = pretrain.token_rows(tokenizer, documents(400, seed=pretrain.HELD_OUT_SEED))
    model = new_model(tokenizer, pretrain.POSITIONS)
    print(f"{rows.numel():,} tokens, {model.num_parameters():,} parameters")

    pretrain.train(model, rows, held_out)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
