"""Bases with random weights are like loaded ones, and the examples for them are what was asked for."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from benchmarks.shapes import SHAPES, parameters, random_base, random_examples
from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe
from workers.lora.adapters import AdapterHost

CPU = torch.device("cpu")


def tiny(kind: type[PretrainedConfig] = LlamaConfig, *, tied: bool = True) -> PretrainedConfig:
    return kind(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize(
    ("name", "billions", "biases"),
    [("qwen2.5-0.5b", 0.494, True), ("llama-3.2-1b", 1.236, False), ("qwen2.5-7b", 7.616, True)],
)
def test_shapes_have_the_published_numbers_of_parameters(name: str, billions: float, biases: bool) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name]())
    assert round(parameters(model) / 1e9, 3) == billions
    assert (model.model.layers[0].self_attn.k_proj.bias is not None) is biases
    assert model.model.layers[0].self_attn.o_proj.bias is None


@pytest.mark.parametrize(
    ("quantization", "layer"),
    [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt), ("none", torch.nn.Linear)],
)
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_block_is_quantized_and_can_be_adapted(
    kind: type[PretrainedConfig], quantization: Quantization, layer: type[torch.nn.Module]
) -> None:
    base = random_base("tiny", tiny(kind), ModelSpec(id="tiny", quantization=quantization), CPU)
    blocks = base.model.base_model.layers
    assert len(blocks) == base.model.config.num_hidden_layers == 3
    for index, block in enumerate(blocks):
        assert type(block.mlp.up_proj) is layer
        assert block.self_attn.layer_idx == index
    assert type(base.model.get_output_embeddings()) is torch.nn.Linear
    assert base.head_is_plain
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert parameters(base.model) == parameters(AutoModelForCausalLM.from_config(tiny(kind)))
    adapter = AdapterHost(base).add("trial", Recipe(lora_r=2))
    assert len(adapter.layers) == 3 * 7


def test_no_two_blocks_have_the_same_weights() -> None:
    base = random_base("tiny", tiny(), ModelSpec(id="tiny", quantization="none"), CPU)
    first, second, third = (block.mlp.up_proj.weight for block in base.model.base_model.layers)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_examples_have_the_lengths_and_the_loss_asked_for() -> None:
    examples = random_examples(5, vocabulary=10, longest=40, shortest=20, supervised=0.5)
    assert [len(example.input_ids) for example in examples] == [40, 35, 30, 25, 20]
    assert [example.supervised_tokens for example in examples] == [20, 17, 15, 13, 10]
    for example in examples:
        assert int(example.input_ids.max()) < 10
        kept = example.labels != -100
        assert torch.equal(example.labels[kept], example.input_ids[kept])


def test_an_example_supervised_throughout_has_one_target_less_than_tokens() -> None:
    (example,) = random_examples(1, vocabulary=10, longest=12, shortest=12, supervised=1.0)
    assert example.supervised_tokens == 11
