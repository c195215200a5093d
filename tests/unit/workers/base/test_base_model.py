"""Loading a quantized base: every quantization trains LoRA on CPU, and evaluation leaves the base alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen2Config

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization
from tests.support.workers.models import build_tiny_base, build_tiny_gpt2, build_tiny_tokenizer
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base, set_training

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(8, 40).reshape(2, 16)


def load(folder: Path, quantization: Quantization = "nf4", **fields: object) -> LoadedBase:
    spec = ModelSpec.model_validate({"id": str(folder), "quantization": quantization, **fields})
    return load_base(spec, CPU)


def with_lora(base: LoadedBase) -> torch.nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(base.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)  # B starts at zero, which would hide A's gradient
    return model


def train_step(model: torch.nn.Module) -> float:
    set_training(model, True)
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return float(loss.detach())


def quantized_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything a bitsandbytes layer computes with, copied."""
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            quant = module.weight.quant_state
            state[f"{name}.weight"] = module.weight.data.clone()
            state[f"{name}.absmax"] = quant.absmax.clone()
            if quant.nested:
                state[f"{name}.state2"] = quant.state2.absmax.clone()
                state[f"{name}.offset"] = quant.offset.clone()
        elif isinstance(module, bnb.nn.Linear8bitLt):
            state[f"{name}.weight"] = module.weight.data.clone()
            state[f"{name}.scale"] = (
                module.state.SCB if module.state.SCB is not None else module.weight.SCB
            ).clone()
    return state


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_lora_trains_on_every_quantization_and_only_lora_gets_gradients(
    odd_base_dir: Path, quantization: Quantization
) -> None:
    """Forward and backward run on CPU, and gradients reach all of LoRA and nothing else."""
    base = load(odd_base_dir, quantization)
    assert {p.requires_grad for p in base.model.parameters()} == {False}
    model = with_lora(base)

    loss = train_step(model)

    assert torch.isfinite(torch.tensor(loss))
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert len(with_gradient) == 2 * 7 * 2


@pytest.mark.parametrize(
    ("quantization", "layer"),
    [("nf4", bnb.nn.Linear4bit), ("fp4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)],
)
def test_linear_layers_are_quantized_as_asked_and_the_head_is_not(
    tiny_base_dir: Path, quantization: Quantization, layer: type[torch.nn.Module]
) -> None:
    """All seven projections of both layers are quantized; the output head and embeddings stay float32."""
    model = load(tiny_base_dir, quantization).model
    layers = [module for module in model.modules() if isinstance(module, layer)]
    assert len(layers) == 14
    if quantization != "int8":
        assert {module.weight.quant_state.quant_type for module in layers} == {quantization}
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("double", [True, False])
def test_double_quantization_is_a_choice(tiny_base_dir: Path, double: bool) -> None:
    """The flag decides whether the quantization constants are quantized too."""
    model = load(tiny_base_dir, "nf4", double_quantization=double).model
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested is double


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("repacking_cpu", [True, False])
def test_evaluating_between_training_steps_changes_nothing(
    odd_base_dir: Path, quantization: Quantization, repacking_cpu: bool
) -> None:
    """Training -> evaluating -> training leaves the quantized weights and the losses bit-identical."""
    model = with_lora(load(odd_base_dir, quantization))
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On a CPU without AVX512-BF16 the layer would not repack; make it try on every machine.
            module.support_avx512bf16_for_cpu = repacking_cpu
    first = train_step(model)
    before = quantized_state(model)

    set_training(model, False)
    with torch.no_grad():
        evaluated = float(model(input_ids=IDS, labels=IDS).loss)

    after = quantized_state(model)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert evaluated == pytest.approx(first, rel=1e-6)
    assert train_step(model) == first


def test_set_training_switches_dropout_but_not_the_quantized_layers(tiny_base_dir: Path) -> None:
    """Everything follows the flag except bitsandbytes layers, which stay in training mode."""
    model = get_peft_model(load(tiny_base_dir).model, LoraConfig(r=2, lora_dropout=0.5))
    for training in (False, True, False):
        set_training(model, training)
        quantized = {m.training for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)}
        dropouts = {m.training for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert quantized == {True}
        assert dropouts == {training}


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_peft_preparation_would_change_no_number_in_float32(
    tiny_base_dir: Path, quantization: Quantization
) -> None:
    """Users who call `prepare_model_for_kbit_training` get the same loss and gradients on CPU."""
    ours = with_lora(load(tiny_base_dir, quantization))
    prepared = load(tiny_base_dir, quantization)
    prepared.model = prepare_model_for_kbit_training(prepared.model, use_gradient_checkpointing=False)
    theirs = with_lora(prepared)
    assert train_step(ours) == train_step(theirs)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.grad is not None:
            assert torch.equal(mine.grad, other.grad), name


def test_the_compute_dtype_is_float32_on_cpu_unless_asked(tiny_base_dir: Path) -> None:
    """Auto means float32 on a CPU; bfloat16 is there for who asks."""
    auto, asked = load(tiny_base_dir), load(tiny_base_dir, compute_dtype="bfloat16")
    assert (auto.compute_dtype, auto.model.lm_head.weight.dtype) == (torch.float32, torch.float32)
    assert (asked.compute_dtype, asked.model.lm_head.weight.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_activations_are_checkpointed_as_long_as_wanted_without_a_hook_or_a_warning(
    tiny_base_dir: Path, quantization: Quantization
) -> None:
    """transformers would add a hook each time that makes the embeddings' output require a gradient."""
    base = load(tiny_base_dir, quantization)
    runs: list[int] = []
    handle = base.model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: runs.append(1))
    with_lora(base)
    counts = []
    for wanted in (False, True, True, False, True, False):
        checkpoint_activations(base.model, wanted)
        train_step(base.model)
        counts.append(len(runs))
        runs.clear()
    handle.remove()
    assert counts == [1, 2, 2, 1, 2, 1]
    assert [name for name, module in base.model.named_modules() if module._forward_hooks] == []


def test_a_bases_own_dropout_is_told_from_that_of_heads_it_does_not_have(tmp_path: Path) -> None:
    """GPT-2's configuration has a `summary_first_dropout`, GPT-NeoX's a `classifier_dropout`, always."""
    without = load(build_tiny_gpt2(tmp_path / "without"))
    dropping = load(build_tiny_gpt2(tmp_path / "dropping", dropout=0.1))
    assert without.model.config.summary_first_dropout == 0.1
    assert (without.has_dropout, dropping.has_dropout) == (False, True)


@pytest.mark.parametrize(
    ("change", "drops"),
    [
        ({}, False),
        ({"classifier_dropout": 0.1}, False),
        ({"attention_dropout": 0.1}, True),
        ({"layerdrop": 0.1}, True),
        ({"router_jitter_noise": 0.01}, True),
        ({"attention_dropout": 0}, False),
    ],
)
def test_what_is_drawn_inside_functions_shows_in_the_configuration(
    tiny_base_dir: Path, tmp_path: Path, change: dict[str, float], drops: bool
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_base_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert load(folder).has_dropout is drops


def test_rows_change_each_other_only_in_int8_on_cuda(tiny_base_dir: Path) -> None:
    """LLM.int8() looks for outlier features over all the rows of a pass."""
    spec = {quantization: ModelSpec(id="x", quantization=quantization) for quantization in ("nf4", "int8")}
    base = load(tiny_base_dir)
    found = {
        (quantization, device): replace(base, spec=own, device=torch.device(device)).rows_independent
        for quantization, own in spec.items()
        for device in ("cpu", "cuda")
    }
    assert [key for key, independent in found.items() if not independent] == [("int8", "cuda")]


def test_what_a_loaded_base_says_of_itself(tiny_base_dir: Path) -> None:
    """Positions, vocabulary and padding come from the model and its tokenizer."""
    base = load(tiny_base_dir)
    assert (base.head_is_plain, base.has_dropout, base.rows_independent) == (True, False, True)
    assert (base.max_positions, base.vocabulary_size, base.pad_id) == (256, 400, 0)
    assert base.device == CPU
    assert base.model.training is False


def test_a_tokenizer_without_pad_token_is_left_as_it_is(tmp_path: Path) -> None:
    """Padding uses the end token's id; neither tokenizer nor embeddings are changed."""
    base = load(build_tiny_base(tmp_path / "m", tokenizer=build_tiny_tokenizer(pad=False)))
    assert base.tokenizer.pad_token is None
    assert base.pad_id == base.tokenizer.eos_token_id
    assert base.vocabulary_size == len(base.tokenizer)


def test_a_model_built_twice_is_the_same_model(tiny_base_dir: Path, tmp_path: Path) -> None:
    """The tests' tiny base is a function of its seed."""
    again = build_tiny_base(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tiny_base_dir / "model.safetensors").read_bytes()


def test_a_base_in_several_shards_loads(tiny_base_dir: Path, tmp_path: Path) -> None:
    """Large models come as an index and several files."""
    whole = load(tiny_base_dir, "none")
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_base_dir, folder)
    (folder / "model.safetensors").unlink()
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    assert (folder / "model.safetensors.index.json").is_file()
    sharded = load(folder, "none")
    assert torch.equal(whole.model(IDS).logits, sharded.model(IDS).logits)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(
            vocab_size=400,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
        ),
        GPT2Config(vocab_size=400, n_embd=64, n_layer=1, n_head=4, n_positions=128),
    ],
    ids=["qwen2", "gpt2"],
)
def test_other_architectures_load(
    config: PreTrainedConfig, quantization: Quantization, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """A head tied to the embeddings is not a missing tensor, nor is GPT-2's transposed layer a wrong one."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_base_dir, folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base = load(folder, quantization)
    assert base.max_positions == 128
    assert torch.isfinite(base.model(IDS, labels=IDS).loss)
