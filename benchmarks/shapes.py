"""Bases of known shapes with random weights: what an engine's speed depends on, without a model hub."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization
from workers.base.base_model import LoadedBase, set_training
from workers.base.causal_attention import attend_without_masks, may_lay_rows_end_to_end
from workers.base.chunked_loss import head_is_plain
from workers.data.examples import Example

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"


def _quickstart() -> PretrainedConfig:
    return AutoConfig.from_pretrained(QUICKSTART / "base", local_files_only=True)


def _qwen_half() -> PretrainedConfig:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )


def _llama_one() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8_192,
        },
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


def _qwen_seven() -> PretrainedConfig:
    return Qwen2Config(
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )


SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "quickstart": _quickstart,
    "qwen2.5-0.5b": _qwen_half,
    "llama-3.2-1b": _llama_one,
    "qwen2.5-7b": _qwen_seven,
}
"""The published configurations. Qwen2's queries, keys and values have biases; that is part of its class."""


def random_base(name: str, config: PretrainedConfig, spec: ModelSpec, device: torch.device) -> LoadedBase:
    """A base as `load_base` makes it, with random weights.

    Built on the device a layer at a time, so there is never more than one layer that is not quantized.

    Args:
        name: What to call it.
        config: Of a model whose backbone holds its blocks in `layers`, as Llama's and Qwen's do.
        spec: Its quantization and compute dtype; the id is not looked at.
        device: Where it goes.
    """
    dtype = _compute_dtype(spec, device)
    layers = config.num_hidden_layers
    # Layer types are listed for all layers already; only how many are built is changed.
    config.num_hidden_layers = 1
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.num_hidden_layers = model.config.num_hidden_layers = layers
    blocks = model.base_model.layers
    template = blocks[0]
    shared = {id(model.config): model.config}  # by which attention is looked up
    blocks[0] = _quantized(copy.deepcopy(template, dict(shared)), spec.quantization, dtype)
    for index in range(1, layers):
        block = _fresh(copy.deepcopy(template, dict(shared)), index, std=config.initializer_range)
        blocks.append(_quantized(block, spec.quantization, dtype))
    # PEFT goes by these when it wraps a layer.
    model.is_loaded_in_4bit = spec.quantization in ("nf4", "fp4")
    model.is_loaded_in_8bit = spec.quantization == "int8"
    model.config.use_cache = False
    model.requires_grad_(False)
    set_training(model, False)
    causal = attend_without_masks(model) and device.type == "cpu"
    tokenizer: Any = SimpleNamespace(pad_token_id=None, eos_token_id=None)
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        device=device,
        compute_dtype=dtype,
        spec=spec.model_copy(update={"id": name}),
        max_positions=config.max_position_embeddings,
        head_is_plain=head_is_plain(model),
        padding_free=causal and may_lay_rows_end_to_end(model),
    )


def random_examples(
    count: int, *, vocabulary: int, longest: int, shortest: int, supervised: float, seed: int = 0
) -> list[Example]:
    """Examples of random tokens, their lengths spread evenly from `shortest` to `longest`.

    Args:
        supervised: The share of an example, from its end, that carries loss.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(count):
        length = longest - index * (longest - shortest) // max(1, count - 1)
        input_ids = torch.randint(vocabulary, (length,), generator=generator)
        labels = input_ids.clone()
        labels[: max(1, round(length * (1 - supervised)))] = -100
        examples.append(Example(input_ids, labels))
    return examples


def parameters(model: PreTrainedModel) -> int:
    """Weights of a model, a quantized one counted as one."""
    linear = {m.weight: m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    return sum(linear.get(weight, weight.numel()) for weight in model.parameters())


def _compute_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    if spec.compute_dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, spec.compute_dtype)


def _fresh(block: nn.Module, index: int, *, std: float) -> nn.Module:
    """Another layer's weights."""
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
        if hasattr(module, "layer_idx"):
            module.layer_idx = index
    return block


def _quantized(block: nn.Module, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    if quantization == "none":
        return block
    for path, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            block.set_submodule(path, _quantized_linear(module, quantization, dtype))
    return block


def _quantized_linear(linear: nn.Linear, quantization: Quantization, dtype: torch.dtype) -> nn.Linear:
    """The layer as transformers quantizes it on loading. Moving the weight is what quantizes it."""
    shape, device = (linear.in_features, linear.out_features), linear.weight.device
    weight = linear.weight.data
    quantized: nn.Linear
    with torch.device("meta"):
        if quantization == "int8":
            quantized = bnb.nn.Linear8bitLt(
                *shape, bias=linear.bias is not None, has_fp16_weights=False, threshold=6.0
            )
        else:
            quantized = bnb.nn.Linear4bit(
                *shape,
                bias=linear.bias is not None,
                compute_dtype=dtype,
                compress_statistics=True,
                quant_type=quantization,
            )
    if quantization == "int8":
        quantized.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    else:
        quantized.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type=quantization, module=quantized
        ).to(device)
    quantized.bias = linear.bias
    return quantized
