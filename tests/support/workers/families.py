"""A tiny model of each family of architectures, with the small tokenizer of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DeepseekV3Config,
    DistilBertConfig,
    ElectraConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    MT5Config,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
    T5Config,
)

from tests.support.workers.models import INITIALIZER_RANGE, build_tiny_tokenizer

Kind = Literal["decoder", "encoder", "encoder-decoder"]
_CLASSES: Mapping[Kind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
HIDDEN = 32
POSITIONS = 64


@dataclass(frozen=True)
class Family:
    """Architectures that share their code, and how large a model of them the tests make."""

    title: str
    """As the table of support calls it."""
    kind: Kind
    config: Callable[..., PreTrainedConfig]
    """Given the tokens that all have, and the initializer's range where it is called so."""
    fields: Mapping[str, Any]
    dropout: Mapping[str, float]
    """What is dropped in a base of that family by its defaults, if anything."""


def _decoder(title: str, config: Any, **fields: Any) -> Family:
    own = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "intermediate_size": 48,
    }
    return Family(title, "decoder", config, {**own, **fields}, {})


def _gated(title: str, config: Any, **fields: Any) -> Family:
    return _decoder(title, config, **{"num_key_value_heads": 2, **fields})


def _encoder(title: str, config: Any, **fields: Any) -> Family:
    own = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "intermediate_size": 48,
    }
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return Family(title, "encoder", config, {**own, **fields}, dropout)


def _t5(title: str, config: Any) -> Family:
    fields = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    own = {**fields, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8}
    return Family(title, "encoder-decoder", config, own, {"dropout_rate": 0.1})


_HEAD_DIM = {"head_dim": 8}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
_WINDOW = 4
"""Tokens that a sliding window spans: fewer than the rows of the tests have."""

FAMILIES: Mapping[str, Family] = {
    "llama": _gated("Llama", LlamaConfig),
    "mistral": _gated("Mistral", MistralConfig, sliding_window=_WINDOW, **_HEAD_DIM),
    "qwen2": _gated("Qwen2", Qwen2Config),
    "qwen3": _gated("Qwen3", Qwen3Config, **_HEAD_DIM),
    "gemma2": _gated("Gemma 2", Gemma2Config, sliding_window=_WINDOW, **_HEAD_DIM),
    "gemma3": _gated(
        "Gemma 3 (text)",
        Gemma3TextConfig,
        sliding_window=_WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        **_HEAD_DIM,
    ),
    "phi3": _gated("Phi-3", Phi3Config),
    "olmo2": _gated("OLMo 2", Olmo2Config),
    "smollm3": _gated("SmolLM3", SmolLM3Config),
    "gpt2": Family(
        "GPT-2",
        "decoder",
        GPT2Config,
        {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS},
        {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    ),
    "gpt_neox": _decoder("GPT-NeoX", GPTNeoXConfig),
    "opt": Family(
        "OPT",
        "decoder",
        OPTConfig,
        {
            "hidden_size": HIDDEN,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": HIDDEN,
        },
        {"dropout": 0.1},
    ),
    "falcon": _decoder("Falcon", FalconConfig),
    "bert": _encoder("BERT", BertConfig),
    "roberta": _encoder("RoBERTa", RobertaConfig),
    "deberta": _encoder("DeBERTa", DebertaConfig, **_RELATIVE),
    "deberta_v2": _encoder(
        "DeBERTa v2 and v3", DebertaV2Config, position_buckets=8, share_att_key=True, **_RELATIVE
    ),
    "distilbert": Family(
        "DistilBERT",
        "encoder",
        DistilBertConfig,
        {
            "dim": HIDDEN,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": POSITIONS,
        },
        {"dropout": 0.1, "attention_dropout": 0.1, "seq_classif_dropout": 0.2},
    ),
    "modernbert": _encoder(
        "ModernBERT",
        ModernBertConfig,
        local_attention=_WINDOW,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "electra": _encoder("ELECTRA", ElectraConfig, embedding_size=16),
    "t5": _t5("T5", T5Config),
    "mt5": _t5("mT5", MT5Config),
    "bart": Family(
        "BART",
        "encoder-decoder",
        BartConfig,
        {
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": POSITIONS,
            "decoder_start_token_id": 3,
            "forced_eos_token_id": 3,
        },
        {"dropout": 0.1},
    ),
    "deepseek": _decoder(
        "DeepSeek V3, `all-linear`",
        DeepseekV3Config,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ),
    "mixtral": _gated("Mixtral", MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
}
"""By a short name."""


def build_family(name: str, folder: Path, *, dropout: bool = False) -> Path:
    """Writes a seeded random model of a family into a folder: a decoder with its language head, an encoder
    with that of masked tokens. Without `dropout` it has none of its own."""
    family = FAMILIES[name]
    tokenizer: PreTrainedTokenizerFast = build_tiny_tokenizer()
    config = family.config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
        **family.fields,
        **{key: value if dropout else 0.0 for key, value in family.dropout.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _CLASSES[family.kind].from_config(config)
        for parameter in model.parameters():  # untrained biases and norms would hide what is left out
            scale = 0.05 if parameter.dim() == 1 else INITIALIZER_RANGE
            parameter.data.add_(torch.randn_like(parameter), alpha=scale)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
