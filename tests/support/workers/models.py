"""Tiny random base models for the tests: own byte-level tokenizer, safetensors, no network.

Each builder writes a folder that `transformers` loads as it would any model, in about a second. The
weights are random but seeded, so a folder built twice holds the same model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from tests.support.tokenizers_of_tasks import build_bert_tokenizer, build_t5_tokenizer

BOS, EOS, PAD, TURN, UNKNOWN = "<s>", "<|im_end|>", "<pad>", "<|im_start|>", "<unk>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The common chat template without `{% generation %}` markers."""

CHATML_WITH_MARKERS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The same with the markers that say which tokens the assistant wrote."""

INITIALIZER_RANGE = 0.1
"""Larger than usual, so that random logits are not all alike."""

_CORPUS = [
    "turn on the kitchen light",
    "switch off the lamp in the bedroom",
    'set the heating to twenty degrees {"device": "heating", "value": 20}',
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "What is two plus two? Two plus two is four. What is the capital of France?",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "system user assistant instruction input response question answer",
]


def build_tiny_tokenizer(
    *, bos: bool = False, pad: bool = True, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 tokens. With `bos`, it puts one before every text."""
    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=[PAD, BOS, TURN, EOS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=BOS,
        pad_token=PAD if pad else None,
        additional_special_tokens=[TURN],
        clean_up_tokenization_spaces=False,
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    return fast


def build_tiny_base(
    folder: Path,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    max_positions: int = 256,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
) -> Path:
    """Writes a tiny Llama-style causal language model and its tokenizer into `folder`."""
    tokenizer = tokenizer or build_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer, seed)


def build_odd_base(folder: Path) -> Path:
    """A base whose MLP is 172 wide: not divisible by 32, as bitsandbytes' inference packing wants."""
    return build_tiny_base(folder, intermediate_size=172)


def build_tiny_gpt2(folder: Path, *, dropout: float = 0.0) -> Path:
    """A base of `Conv1D` layers, which keep their weight as [in, out]; with `dropout`, of its own."""
    tokenizer = build_tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer)


def build_tiny_opt(folder: Path) -> Path:
    """A base whose MLP is given its rows as one: [rows * tokens, features]."""
    tokenizer = build_tiny_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer)


def build_tiny_falcon(folder: Path) -> Path:
    """A base that changes what its layers give it in place."""
    tokenizer = build_tiny_tokenizer()
    config = FalconConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer)


def build_tiny_deepseek(folder: Path) -> Path:
    """A base with layers that go by the names of its fused experts."""
    tokenizer = build_tiny_tokenizer()
    config = DeepseekV3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer)


def build_tiny_t5(folder: Path) -> Path:
    """An encoder and a decoder, with T5's kind of tokenizer."""
    tokenizer = build_t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return _write(folder, config, tokenizer, kind=AutoModelForSeq2SeqLM)


def build_tiny_bert(folder: Path) -> Path:
    """An encoder without a head for any task, with BERT's kind of tokenizer."""
    tokenizer = build_bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
    )
    return _write(folder, config, tokenizer, kind=AutoModel)


def _write(
    folder: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    *,
    kind: type[Any] = AutoModelForCausalLM,
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
