"""Pretrains the small encoder and the small encoder-decoder of the examples from nothing.

    python examples/make_bases.py [--out FOLDER] [--steps N] [--only encoder]

Both read the quickstart's pretraining text. The encoder (BERT) fills in masked words; the encoder-decoder
(T5) writes a text whose words were partly left out. Each has fewer than 250,000 parameters. All widths are
multiples of 64, the block of bitsandbytes' NF4.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "quickstart"))

from pretraining_text import documents  # noqa: E402 - the quickstart's scripts are no package

SEED = 5
VOCABULARY = 640
POSITIONS = 64
PEAK_RATE = 3e-3
LEFT_OUT = 0.2
"""Share of the tokens that are masked, or left out."""


def encoder_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """BERT's: WordPiece, and `[CLS] A [SEP] B [SEP]`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def seq2seq_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, and `A </s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=2 * POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_encoder(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_seq2seq(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=32,
            d_ff=128,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def masked(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], dice: torch.Generator
) -> dict[str, torch.Tensor]:
    """Texts with masked tokens, and these tokens as labels."""
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    ids = batch["input_ids"]
    hidden = (torch.rand(ids.shape, generator=dice) < LEFT_OUT) & (ids >= len(tokenizer.all_special_ids))
    labels = ids.masked_fill(~hidden, -100)
    return {**batch, "input_ids": ids.masked_fill(hidden, tokenizer.mask_token_id), "labels": labels}


def with_gaps(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], dice: torch.Generator
) -> dict[str, torch.Tensor]:
    """Texts without some of their words, and the whole texts as labels."""
    sources = []
    for text in texts:
        kept = torch.rand(len(text.split()), generator=dice) >= LEFT_OUT
        sources.append(" ".join(word for word, is_kept in zip(text.split(), kept, strict=True) if is_kept))
    batch = tokenizer(sources, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
    whole = [" ".join(text.split()) for text in texts]
    target = tokenizer(whole, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
    labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def train(
    model: PreTrainedModel,
    batch_of: Callable[[list[str], torch.Generator], dict[str, torch.Tensor]],
    steps: int,
    size: int,
) -> None:
    """One pass over `steps` batches of `size` texts, each seen once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    text, dice = documents(steps * size), torch.Generator().manual_seed(SEED)
    model.train()
    started = time.monotonic()
    for step in range(steps):
        loss = model(**batch_of(list(islice(text, size)), dice)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 250 == 0 or step == steps - 1:
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the bases of the examples.")
    parser.add_argument("--out", type=Path, default=HERE / "bases")
    parser.add_argument("--steps", type=int, help="fewer for a quick look")
    parser.add_argument("--only", choices=("encoder", "seq2seq"), help="make one of them")
    arguments = parser.parse_args()
    texts = list(documents(5_000))
    for name, tokenizer, new_model, batch_of, steps, size in (
        ("encoder", encoder_tokenizer(texts), new_encoder, masked, 2000, 32),
        ("seq2seq", seq2seq_tokenizer(texts), new_seq2seq, with_gaps, 600, 16),
    ):
        if arguments.only not in (None, name):
            continue
        torch.manual_seed(SEED)
        model = new_model(tokenizer)
        print(f"{name}: {model.num_parameters():,} parameters")
        train(model, partial(batch_of, tokenizer), arguments.steps or steps, size)
        model.save_pretrained(arguments.out / name)
        tokenizer.save_pretrained(arguments.out / name)


if __name__ == "__main__":
    main()
