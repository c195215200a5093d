"""Which models may attend without masks, and that nothing changes for them."""

from __future__ import annotations

import threading
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
from workers.base.causal_attention import (
    NAME,
    attend_without_masks,
    may_lay_rows_end_to_end,
    positions_of,
    rows_end_to_end,
)
from workers.base.chunked_loss import hidden_states
from workers.data.batches import MicroBatch, collate, lay_end_to_end

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
UNEVEN = torch.linspace(-1, 1, 32)
"""What each feature of a state counts. The sum of their squares would be the same for all, after a norm."""
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
        (gradient,) = torch.autograd.grad((chosen * UNEVEN).sum(), weight)
        return chosen.detach(), gradient

    expected = states()
    assert attend_without_masks(model)
    assert implementation(model) == NAME
    actual = states()
    for one, other in zip(actual, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


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


@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), Qwen2Config(**GROUPED), OPTConfig(**TINY)])
def test_rows_laid_end_to_end_have_the_states_and_gradients_of_rows_below_each_other(
    config: PretrainedConfig,
) -> None:
    model = build(config)
    assert attend_without_masks(model)
    assert may_lay_rows_end_to_end(model)
    examples = random_examples(5, longest=20, vocabulary=120)
    lengths = [example.length for example in examples]
    weight = model.get_input_embeddings().weight

    def states(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        positions = None if batch.row_lengths is None else positions_of(lengths, CPU)[None]
        with rows_end_to_end(batch.row_lengths):
            hidden = hidden_states(model, batch.input_ids, batch.attention_mask, None, positions)
            chosen = hidden.flatten(0, 1)[batch.positions]
            (gradient,) = torch.autograd.grad((chosen * UNEVEN).sum(), weight)
        return chosen.detach(), gradient

    for one, other in zip(states(lay_end_to_end(examples)), states(collate(examples, 0)), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


class LooksBack(LlamaForCausalLM):
    """Adds the token before to each, as a convolution over time does."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(
            lambda _module, _inputs, states: states + torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]
        )


class CountsByItself(LlamaForCausalLM):
    """Adds something to each token by its place in the tensor, whatever positions are given."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(
            lambda _module, _inputs, states: states + torch.arange(states.shape[1])[:, None]
        )


class TakesNoPositions(LlamaForCausalLM):
    """Fails on what it does not know."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        inner = self.model.forward
        self.model.forward = lambda input_ids, attention_mask=None, use_cache=False: inner(  # type: ignore[method-assign]
            input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        )


@pytest.mark.parametrize("architecture", [LooksBack, CountsByItself, TakesNoPositions])
def test_a_model_whose_tokens_see_each_other_elsewhere_is_found_out(
    architecture: type[LlamaForCausalLM],
) -> None:
    torch.manual_seed(0)
    model = architecture(LlamaConfig(**GROUPED))
    set_training(model, False)
    assert attend_without_masks(model)
    assert not may_lay_rows_end_to_end(model)


def test_the_layout_of_one_thread_is_not_that_of_another() -> None:
    """Workers in threads of one process, as in tests, do not disturb each other."""
    model = build(LlamaConfig(**GROUPED))
    assert attend_without_masks(model)
    ids = torch.arange(3, 11).view(2, 4)
    expected = model(ids).logits
    found: list[torch.Tensor] = []
    with rows_end_to_end((4, 4)):
        thread = threading.Thread(target=lambda: found.append(model(ids).logits))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)
