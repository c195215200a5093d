"""Which layers a recipe adapts, on architectures with different names."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from search_spaces.recipe import TargetModules
from workers.base.target_modules import linear_layers, output_head, resolve_target_modules, shortest_suffixes
from workers.errors import AdapterError

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LLAMA, GPT2, NEOX, FALCON, OPT = "llama", "gpt2", "gpt_neox", "falcon", "opt"
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        if name == LLAMA:
            return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=24))
        if name == GPT2:
            return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))
        if name == NEOX:
            return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=24))
        if name == FALCON:
            return FalconForCausalLM(FalconConfig(**SMALL))
        return OPTForCausalLM(
            OPTConfig(vocab_size=40, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2,
                      num_attention_heads=2)
        )  # fmt: skip


def suffixes(model: PreTrainedModel, targets: TargetModules) -> list[str]:
    selected = resolve_target_modules(targets, linear_layers(model), type(model).__name__)
    return shortest_suffixes(selected, [name for name, _ in model.named_modules()])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LLAMA, ["k_proj", "o_proj", "q_proj", "v_proj"]),
        (GPT2, ["attn.c_proj", "c_attn"]),
        (NEOX, ["dense", "query_key_value"]),
        (FALCON, ["dense", "query_key_value"]),
        (OPT, ["k_proj", "out_proj", "q_proj", "v_proj"]),
    ],
)
def test_attention_means_the_projections_of_attention_blocks(name: str, expected: list[str]) -> None:
    assert suffixes(build(name), "attention") == expected


@pytest.mark.parametrize("name", [LLAMA, GPT2, NEOX, FALCON, OPT])
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_peft_adapts_exactly_the_layers_that_were_selected(name: str, targets: TargetModules) -> None:
    model = build(name)
    expected = resolve_target_modules(targets, linear_layers(model), name)
    config = LoraConfig(target_modules=suffixes(model, targets), fan_in_fan_out=name == GPT2)
    peft = get_peft_model(model, config)
    adapted = [n for n, m in peft.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)]
    assert adapted == expected


@pytest.mark.parametrize("name", [LLAMA, GPT2, NEOX, FALCON, OPT])
def test_all_linear_is_what_peft_means_by_it(name: str) -> None:
    peft = get_peft_model(build(name), LoraConfig(target_modules="all-linear", fan_in_fan_out=name == GPT2))
    expected = [n for n, m in peft.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)]
    assert linear_layers(build(name)) == expected


def test_names_stand_for_every_layer_they_end() -> None:
    linear = linear_layers(build(LLAMA))
    assert resolve_target_modules(("q_proj", "1.mlp.up_proj"), linear, "Llama") == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_a_name_that_matches_no_layer_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(
        AdapterError, match=r"names 'q_prj', which is not a linear layer of Llama. Did you mean 'q_proj'"
    ):
        resolve_target_modules(("v_proj", "q_prj"), linear_layers(build(LLAMA)), "Llama")


def test_attention_without_attention_layers_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(AdapterError, match=r"matches no layer of Mixer.*are called mixing, up"):
        resolve_target_modules("attention", ["block.0.mixing", "block.0.up"], "Mixer")


def test_the_output_head_is_never_adapted() -> None:
    assert not [name for name in linear_layers(build(LLAMA)) if "head" in name]


@pytest.mark.parametrize("name", [LLAMA, GPT2, NEOX, FALCON, OPT])
def test_the_output_head_is_called_so(name: str) -> None:
    """Whether or not it is tied."""
    model = build(name)
    linear = linear_layers(model)
    with pytest.raises(AdapterError) as caught:
        resolve_target_modules((linear[0], "lm_head"), linear, "Base", output_head(model))
    said = "target_modules names 'lm_head', the output head of Base, which is not adapted. Leave it out."
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("target", ["lm_head", "output", "score", "classifier"])
def test_an_output_head_by_its_name_elsewhere_is_called_so(target: str) -> None:
    """Architectures call it otherwise."""
    with pytest.raises(AdapterError) as caught:
        resolve_target_modules(("up", target), ["block.0.up"], "Mixer", "embed_out")
    said = f"names {target!r}, the output head of Mixer (called 'embed_out' there), which is not adapted."
    assert said in str(caught.value)


def test_a_layer_that_is_named_as_heads_are_elsewhere_is_adapted() -> None:
    """BERT-like attention blocks have a linear layer `output`."""
    assert resolve_target_modules(("output",), ["block.0.output"], "Mixer", "lm_head") == ["block.0.output"]
