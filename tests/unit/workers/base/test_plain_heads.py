"""Which models' logits are their output head's and nothing else: found out by experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from search_spaces.definition import ModelSpec
from workers.base.base_model import load_base, set_training
from workers.base.chunked_loss import head_is_plain, hidden_states

CPU = torch.device("cpu")

TINY: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED: dict[str, Any] = {**TINY, "intermediate_size": 48, "num_key_value_heads": 2}
GEMMA2 = Gemma2Config(**GATED, head_dim=8, sliding_window=32)


class Bare(LlamaForCausalLM):
    """Names no backbone, as an architecture written in one piece."""

    base_model_prefix = "nothing"


class Scaled(LlamaForCausalLM):
    """Scales what goes into the head, as MiniCPM does."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, **options).last_hidden_state / 2))


class Headless(LlamaForCausalLM):
    """Admits to no output head."""

    def get_output_embeddings(self) -> None:
        return None


class Unused(LlamaForCausalLM):
    """Makes logits without calling the head."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutput:
        hidden = self.model(input_ids, **options).last_hidden_state
        return CausalLMOutput(logits=F.linear(hidden, self.lm_head.weight))


def random_model(config: PretrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """With weights a tenth of the usual size and so tiny logits, which a cap would leave almost alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.1)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**GATED),
        LlamaConfig(**GATED, tie_word_embeddings=True),
        GPT2Config(**TINY),
        OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=32),
        OPTConfig(**TINY, ffn_dim=48, word_embed_proj_dim=16),
        Gemma2Config(**{**GEMMA2.to_dict(), "final_logit_softcapping": None}),
        GraniteConfig(**GATED, logits_scaling=1.0),
        CohereConfig(**GATED, logit_scale=1.0),
    ],
    ids=["llama", "llama tied", "gpt2", "opt", "opt projecting", "gemma2 uncapped", "granite 1", "cohere 1"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_are_the_last_thing_are_plain_and_give_the_models_logits(
    config: PretrainedConfig, dtype: torch.dtype
) -> None:
    model = random_model(config).to(dtype)
    assert head_is_plain(model) is True
    ids = torch.arange(20).view(2, 10) % 120
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    set_training(model, False)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(model.get_output_embeddings()(hidden_states(model, ids, mask)), logits)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GEMMA2, None),
        (GraniteConfig(**GATED, logits_scaling=8.0), None),
        (CohereConfig(**GATED), None),
        (LlamaConfig(**GATED), Bare),
        (LlamaConfig(**GATED), Scaled),
        (LlamaConfig(**GATED), Headless),
        (LlamaConfig(**GATED), Unused),
    ],
    ids=["gemma2", "granite", "cohere", "no backbone", "scaled input", "no head", "unused head"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_are_not_the_whole_story_are_not_plain(
    config: PretrainedConfig, kind: type[PreTrainedModel] | None, dtype: torch.dtype
) -> None:
    assert head_is_plain(random_model(config, kind).to(dtype)) is False


def test_a_cap_larger_than_any_logit_of_the_model_is_seen() -> None:
    model = random_model(GEMMA2)
    set_training(model, False)
    with torch.no_grad():
        assert model(input_ids=torch.arange(8).view(1, 8)).logits.abs().max() < 0.5
    assert head_is_plain(model) is False


@pytest.mark.parametrize("training", [True, False])
def test_the_experiment_leaves_modes_hooks_gradients_and_random_numbers_alone(training: bool) -> None:
    model = random_model(GPT2Config(**TINY, resid_pdrop=0.5))
    model.train(training)
    model.transformer.h[0].train(not training)
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert head_is_plain(model) is True
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert len(model.get_output_embeddings()._forward_hooks) == 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_quantized_base_keeps_its_layers_in_training_mode(odd_base_dir: Path) -> None:
    model = load_base(ModelSpec(id=str(odd_base_dir)), CPU).model
    assert head_is_plain(model) is True
    assert {m.training for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)} == {True}
