"""Which models may attend without masks, and that nothing changes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from search_spaces.definition import ModelSpec
from tests.support.workers.trials import random_examples
from workers.base.base_model import load_base, set_training
from workers.base.causal_attention import NAME, attend_without_masks
from workers.base.chunked_loss import hidden_states
from workers.data.batches import collate

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = {**TINY, "num_key_value_heads": 2}


def build(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    set_training(model, False)
    return model


def implementation(model: PreTrainedModel) -> str:
    name: str = model.config.get_text_config()._attn_implementation
    return name


@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), Qwen2Config(**GROUPED), OPTConfig(**TINY)])
def test_tokens_beside_padding_keep_their_states_and_gradients(config: PretrainedConfig) -> None:
    model = build(config)
    batch = collate(random_examples(5, longest=20, vocabulary=120), 0)

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        weight = model.get_input_embeddings().weight
        hidden = hidden_states(model, batch.input_ids, batch.attention_mask)
        chosen = hidden.flatten(0, 1)[batch.positions]
        (gradient,) = torch.autograd.grad(chosen.square().sum(), weight)
        return chosen.detach(), gradient

    expected = states()
    assert attend_without_masks(model)
    assert implementation(model) == NAME
    actual = states()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**GROUPED, sliding_window=4),
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ],
)
def test_models_with_windows_keep_their_masks(config: PretrainedConfig) -> None:
    model = build(config)
    assert not attend_without_masks(model)
    assert implementation(model) == "sdpa"


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=120, hidden_size=32, n_layer=2, n_head=4),
        FalconConfig(**TINY),
    ],
)
def test_architectures_that_look_no_attention_up_are_left_alone(config: PretrainedConfig) -> None:
    model = build(config)
    before = implementation(model)
    assert not attend_without_masks(model)
    assert implementation(model) == before


class LooksBothWays(LlamaForCausalLM):
    """Sees all the tokens that its mask shows, as an encoder does."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False
        self.config.is_causal = False


class Stateless(LlamaForCausalLM):
    """A backbone that does not say what its hidden states are."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        inner = self.model.forward
        self.model.forward = lambda *args, **options: BaseModelOutputWithPast(  # type: ignore[method-assign]
            past_key_values=inner(*args, **options).past_key_values
        )


@pytest.mark.parametrize("architecture", [LooksBothWays, Stateless])
def test_a_model_that_needs_its_masks_is_found_out(architecture: type[LlamaForCausalLM]) -> None:
    torch.manual_seed(0)
    model = architecture(LlamaConfig(**GROUPED))
    set_training(model, False)
    assert not attend_without_masks(model)
    assert implementation(model) == "sdpa"


def test_a_loaded_base_attends_without_masks(tiny_base_dir: Path) -> None:
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="nf4"), CPU)
    assert implementation(base.model) == NAME
