"""Adapters come, are saved and go; the base stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from search_spaces.definition import ModelSpec, Quantization
from search_spaces.recipe import Recipe
from workers.adapters import Adapter, AdapterHost
from workers.base_model import LoadedBase, load_base
from workers.errors import AdapterError

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(8, 40).reshape(2, 16)


def load(folder: Path, quantization: Quantization = "nf4") -> LoadedBase:
    return load_base(ModelSpec(id=str(folder), quantization=quantization), CPU)


def logits(base: LoadedBase) -> torch.Tensor:
    with torch.no_grad():
        return base.model(input_ids=IDS).logits


def state_bytes(base: LoadedBase) -> dict[str, bytes]:
    """Every tensor of the base, quantization state included, as bytes."""
    return {
        name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in base.model.state_dict().items()
    }


def disturb(adapter: Adapter, seed: int = 1) -> None:
    """Gives an adapter an effect: PEFT starts B at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load(tiny_base_dir)


def test_an_untrained_adapter_changes_nothing(base: LoadedBase) -> None:
    before = logits(base)
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=4))
    assert torch.equal(logits(base), before)
    host.remove("first")


def test_the_adapter_is_the_one_that_set_seed_and_peft_make(tiny_base_dir: Path, base: LoadedBase) -> None:
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=4, lora_alpha_ratio=3.0, seed=5))
    reference = load(tiny_base_dir).model
    set_seed(5)
    expected = get_peft_model(
        reference, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainable = [p for p in expected.parameters() if p.requires_grad]
    assert [p.shape for p in adapter.parameters] == [p.shape for p in trainable]
    assert all(torch.equal(a, e) for a, e in zip(adapter.parameters, trainable, strict=True))
    assert adapter.trainable_parameters == expected.get_nb_trainable_parameters()[0]
    host.remove("first")


def test_making_an_adapter_draws_nothing_from_the_global_generator(base: LoadedBase) -> None:
    host = AdapterHost(base)
    before = torch.get_rng_state()
    host.add("first", Recipe())
    assert torch.equal(torch.get_rng_state(), before)
    host.remove("first")


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_the_base_is_bit_identical_and_unwrapped_after_its_adapters_are_gone(
    tiny_base_dir: Path, quantization: Quantization
) -> None:
    base = load(tiny_base_dir, quantization)
    state, modules, output = state_bytes(base), dict(base.model.named_modules()), logits(base)
    host = AdapterHost(base)
    disturb(host.add("first", Recipe(lora_r=2)))
    disturb(host.add("second", Recipe(lora_r=8, target_modules="attention", lora_dropout=0.5)))
    host.remove("first")
    host.remove("second")
    assert state_bytes(base) == state
    assert {n: id(m) for n, m in base.model.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert torch.equal(logits(base), output)
    assert not [n for n, p in base.model.named_parameters() if p.requires_grad]


def test_adapters_on_one_base_do_not_touch_each_other(base: LoadedBase) -> None:
    recipes = {
        "first": Recipe(lora_r=2, seed=1),
        "second": Recipe(lora_r=8, seed=2, target_modules="attention", use_rslora=True),
    }
    alone = {}
    for seed, (name, recipe) in enumerate(recipes.items()):
        host = AdapterHost(base)
        disturb(host.add(name, recipe), seed)
        alone[name] = logits(base)
        host.remove(name)
    host = AdapterHost(base)
    for seed, (name, recipe) in enumerate(recipes.items()):
        disturb(host.add(name, recipe), seed)
    for name in ("first", "second", "first"):
        host.activate(name)
        assert torch.equal(logits(base), alone[name])
    host.remove("first")
    host.activate("second")
    assert torch.equal(logits(base), alone["second"])
    host.remove("second")


def test_a_saved_adapter_is_what_peft_reads_and_computes_the_same(
    tiny_base_dir: Path, base: LoadedBase, tmp_path: Path
) -> None:
    host = AdapterHost(base)
    host.add("other", Recipe(lora_r=8))
    recipe = Recipe(lora_r=4, lora_alpha=10.0, lora_dropout=0.1, use_rslora=True, target_modules=("q_proj",))
    disturb(host.add("mine", recipe))
    expected = logits_in_eval(base)
    host.save("mine", tmp_path / "deep" / "best")
    host.remove("mine")
    host.remove("other")
    assert sorted(p.name for p in (tmp_path / "deep").rglob("*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "best",
    ]
    config = json.loads((tmp_path / "deep" / "best" / "adapter_config.json").read_text())
    saved = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")}
    assert saved == {
        "r": 4,
        "lora_alpha": 10,
        "lora_dropout": 0.1,
        "use_rslora": True,
        "target_modules": ["q_proj"],
    }
    assert (config["base_model_name_or_path"], config["task_type"], config["inference_mode"]) == (
        str(tiny_base_dir),
        "CAUSAL_LM",
        True,
    )
    fresh = load(tiny_base_dir)
    loaded = PeftModel.from_pretrained(fresh.model, str(tmp_path / "deep" / "best"))
    assert torch.equal(logits_in_eval(fresh), expected)
    assert loaded.active_adapter == "default"


def logits_in_eval(base: LoadedBase) -> torch.Tensor:
    from workers.base_model import set_training

    set_training(base.model, False)
    return logits(base)


def test_saving_again_replaces_the_whole_folder(base: LoadedBase, tmp_path: Path) -> None:
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=2))
    host.save("first", tmp_path / "best")
    (tmp_path / "best" / "stale").touch()
    disturb(adapter)
    host.save("first", tmp_path / "best")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "best",
    ]
    weights = load_file(tmp_path / "best" / "adapter_model.safetensors")
    assert sum(bool(w.any()) for w in weights.values()) == len(adapter.parameters)
    host.remove("first")


def test_a_save_that_fails_leaves_the_older_adapter_and_no_debris(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2))
    host.save("first", tmp_path / "best")
    before = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("workers.adapters.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        host.save("first", tmp_path / "best")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before
    host.remove("first")


def test_a_save_that_cannot_be_moved_into_place_leaves_the_older_adapter(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2))
    host.save("first", tmp_path / "best")
    before = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}
    rename = Path.rename
    calls: list[Path] = []

    def rename_but_once(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError("no such device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_once)
    with pytest.raises(OSError, match="no such device"):
        host.save("first", tmp_path / "best")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before
    host.remove("first")


@pytest.mark.parametrize("others", [0, 1])
def test_an_adapter_that_cannot_be_made_leaves_nothing_behind(
    base: LoadedBase, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out in the middle of a high rank's matrices, after PEFT has wrapped some layers."""
    host = AdapterHost(base)
    attention = Recipe(lora_r=2, target_modules="attention")
    kept = [host.add(f"other-{number}", attention) for number in range(others)]
    for adapter in kept:
        disturb(adapter)
    modules = {name: type(module) for name, module in base.model.named_modules()}
    parameters = [name for name, _ in base.model.named_parameters()]
    before = logits_in_eval(base)
    update_layer, layers = LoraLayer.update_layer, []

    def run_out_at_the_sixth(self: LoraLayer, *args: object, **kwargs: object) -> None:
        layers.append(self)
        if len(layers) == 6:
            raise torch.OutOfMemoryError("out of memory")
        update_layer(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LoraLayer, "update_layer", run_out_at_the_sixth)
        with pytest.raises(torch.OutOfMemoryError):
            host.add("large", Recipe(lora_r=8))
    assert [name for name, _ in base.model.named_parameters() if "large" in name] == []
    assert torch.equal(logits_in_eval(base), before)
    if not others:
        assert {name: type(module) for name, module in base.model.named_modules()} == modules
        assert [name for name, _ in base.model.named_parameters()] == parameters
    again = host.add("large", Recipe(lora_r=8))
    assert all(parameter.requires_grad for parameter in again.parameters)
    host.remove("large")
    for number in range(others):
        host.remove(f"other-{number}")


def test_a_recipe_that_matches_no_layer_leaves_the_base_bare(base: LoadedBase) -> None:
    modules = [name for name, _ in base.model.named_modules()]
    with pytest.raises(AdapterError, match="no linear layer of LlamaForCausalLM"):
        AdapterHost(base).add("first", Recipe(target_modules=("nowhere",)))
    assert [name for name, _ in base.model.named_modules()] == modules


def test_the_saved_adapter_fits_the_unquantized_base_too(
    tiny_base_dir: Path, base: LoadedBase, tmp_path: Path
) -> None:
    host = AdapterHost(base)
    disturb(host.add("first", Recipe(lora_r=4)))
    host.save("first", tmp_path / "best")
    host.remove("first")
    plain = AutoModelForCausalLM.from_pretrained(tiny_base_dir)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "best"))
    weights = load_file(tmp_path / "best" / "adapter_model.safetensors")
    assert len(weights) == sum("lora_" in name for name, _ in loaded.named_parameters())
