"""Adapters come, are saved and go; the base stays what it was.

One file, since every test shares one small base and its fixtures.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, set_seed

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe, TargetModules
from tests.support.workers.models import build_tiny_deepseek
from workers.artifacts.folders import LocalFolder
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base, set_training
from workers.base.target_modules import linear_layers
from workers.errors import AdapterError
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import Form

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(8, 40).reshape(2, 16)


def load(folder: Path, quantization: Quantization = "nf4") -> LoadedBase:
    return load_base(ModelSpec(id=str(folder), quantization=quantization), CPU)


def save(host: AdapterHost, name: str, folder: Path) -> None:
    LocalFolder(folder.parent).put_folder(folder.name, host.files(name))


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
    adapter.master.data.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))


def peft_matrices(base: LoadedBase, name: str) -> dict[str, torch.nn.Parameter]:
    """PEFT's own parameters of an adapter."""
    return {path: p for path, p in base.model.named_parameters() if path.endswith(f".{name}.weight")}


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
    paths = linear_layers(base.model)
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=4, lora_alpha_ratio=3.0, seed=5))
    reference = load(tiny_base_dir).model
    set_seed(5)
    expected = get_peft_model(
        reference, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trainable = {name: p.detach() for name, p in expected.named_parameters() if p.requires_grad}
    found = {}
    for number, layer in adapter.layers.items():
        path = f"base_model.model.{paths[number]}"
        found[f"{path}.lora_A.default.weight"] = layer.a
        found[f"{path}.lora_B.default.weight"] = layer.b.t()
    assert found.keys() == trainable.keys()
    assert all(torch.equal(found[name], trainable[name]) for name in found)
    assert {layer.scale for layer in adapter.layers.values()} == {3.0}
    assert adapter.trainable_parameters == expected.get_nb_trainable_parameters()[0]
    host.remove("first")


def peft_state(base: LoadedBase) -> dict[str, object]:
    """What PEFT knows of the adapters on a base."""
    layers = {path: m for path, m in base.model.named_modules() if isinstance(m, LoraLayer)}
    known = ("r", "lora_alpha", "scaling", "use_rslora", "use_dora", "lora_bias", "active_adapters")
    return {
        "matrices": {
            path: (p.dtype, p.requires_grad, p.tolist())
            for path, p in base.model.named_parameters()
            if "lora_" in path
        },
        "settings": {path: [getattr(m, name) for name in known] for path, m in layers.items()},
        "dropout": {path: str(m.lora_dropout) for path, m in layers.items()},
    }


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", ["all-linear", "attention", ("down_proj", "q_proj")])
def test_an_adapter_on_layers_that_have_some_is_the_one_that_peft_adds(
    tiny_base_dir: Path, targets: TargetModules, compute_dtype: Literal["float32", "bfloat16"], tmp_path: Path
) -> None:
    """Such layers are extended one by one; PEFT's own `add_adapter` is the oracle."""
    spec = ModelSpec(id=str(tiny_base_dir), quantization="none", compute_dtype=compute_dtype)
    recipe = Recipe(
        lora_r=4, lora_alpha_ratio=3.0, lora_dropout=0.5, use_rslora=True, target_modules=targets, seed=5
    )
    states, saved = [], []
    for way in ("ours", "PEFT's"):
        base = load_base(spec, CPU)
        host = AdapterHost(base)
        host.add("first", Recipe(lora_r=2))
        if way == "PEFT's":
            host._extend = lambda name, config, _layers, host=host: host._wrap(name, config)  # type: ignore[method-assign]
        adapter = host.add("second", recipe)
        save(host, "second", tmp_path / way)
        states.append((peft_state(base), adapter.master.tolist(), list(adapter.layers)))
        saved.append({file.name: file.read_bytes() for file in (tmp_path / way).iterdir()})
    assert states[0] == states[1]
    assert saved[0] == saved[1]


def test_layers_without_adapters_are_wrapped_when_a_later_one_targets_them(base: LoadedBase) -> None:
    """And it goes without a warning of PEFT's, which leaves it active in the layers that it has alone."""
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2, target_modules="attention"))
    wide = host.add("wide", Recipe(lora_r=2))
    assert list(wide.layers) == list(range(14))
    host.remove("wide")
    host.activate("first")
    host.remove("first")


def test_pefts_matrices_are_views_of_one_flat_tensor(base: LoadedBase) -> None:
    """What an optimizer does to the flat tensor is done to PEFT's parameters; so are gradients laid out."""
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=4, target_modules="attention"))
    matrices = peft_matrices(base, "first")
    assert (adapter.master.dtype, adapter.gradient.dtype) == (torch.float32, torch.float32)
    assert adapter.master.shape == adapter.gradient.shape == (sum(m.numel() for m in matrices.values()),)
    assert not adapter.gradient.any()
    adapter.master.data.copy_(torch.arange(adapter.trainable_parameters))
    adapter.gradient.copy_(-adapter.master.data)
    seen = []
    for layer in adapter.layers.values():
        assert torch.equal(layer.grad_a, -layer.a)
        assert torch.equal(layer.grad_b, -layer.b)
        seen += layer.a.flatten().tolist() + layer.b.flatten().tolist()
    assert sorted(seen) == list(range(adapter.trainable_parameters))
    assert [m.detach().unique().tolist() for m in matrices.values()] == [
        matrix.unique().tolist() for layer in adapter.layers.values() for matrix in (layer.a, layer.b)
    ]
    host.remove("first")


def test_adapters_with_the_same_matrices_share_a_bank_and_leave_each_other_alone(base: LoadedBase) -> None:
    """Whatever was in a slot before: its gradient starts from 0, and its numbers are PEFT's own."""
    recipes = [Recipe(lora_r=2, seed=seed) for seed in range(5)]
    alone = []
    for recipe in recipes:
        host = AdapterHost(base)
        alone.append(host.add("alone", recipe).master.detach().clone())
        host.remove("alone")
    host = AdapterHost(base, slots=4)
    adapters = [host.add(str(seed), recipe) for seed, recipe in enumerate(recipes[:4])]
    other = host.add("other", Recipe(lora_r=2, target_modules="attention"))
    assert [adapter.place for adapter in adapters] == [(1, 0), (2, 0), (3, 0), (3, 1)]
    assert other.place[0] == 4
    adapters[2].master.data.fill_(torch.nan)
    adapters[2].gradient.fill_(torch.nan)
    host.remove("2")
    adapters[2] = host.add("4", recipes[4])
    assert adapters[2].place == (3, 0)
    assert not adapters[2].gradient.any()
    for adapter, expected in zip(adapters, [*alone[:2], alone[4], alone[3]], strict=True):
        assert torch.equal(adapter.master.detach(), expected)
    for adapter in (*adapters, other):
        host.remove(adapter.name)


def test_a_layer_has_the_same_number_whatever_adapters_are_on_it(base: LoadedBase) -> None:
    """Dropout is drawn by it."""
    host = AdapterHost(base)
    alone = host.add("alone", Recipe(lora_r=2, target_modules=("down_proj",)))
    assert list(alone.layers) == [6, 13]
    everywhere = host.add("everywhere", Recipe(lora_r=2))
    again = host.add("again", Recipe(lora_r=2, target_modules=("down_proj",)))
    host.remove("alone")
    assert (list(everywhere.layers), list(again.layers)) == (list(range(14)), [6, 13])
    for name in ("everywhere", "again"):
        host.remove(name)
    once_more = host.add("once more", Recipe(lora_r=2, target_modules=("down_proj",)))
    assert list(once_more.layers) == [6, 13]
    host.remove("once more")


def test_rows_have_dropout_in_training_only(base: LoadedBase) -> None:
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=2, lora_dropout=0.25))
    assert (adapter.rows(2).rows, adapter.rows(2).dropout) == (2, 0.0)
    training = adapter.rows(2, [5, 6])
    assert (training.dropout, training.keys, training.layers) == (0.25, [5, 6], adapter.layers)
    host.remove("first")


def test_on_a_cpu_the_products_are_taken_one_adapter_after_another(base: LoadedBase) -> None:
    host = AdapterHost(base)
    adapters = [host.add(name, Recipe(lora_r=2)) for name in ("first", "second")]
    assert host.choose_form([adapter.rows(1) for adapter in adapters]) == "looped"
    for adapter in adapters:
        host.remove(adapter.name)


@pytest.mark.parametrize(
    ("ranks", "dtype", "form"),
    [
        ([64], torch.bfloat16, "looped"),
        ([1, 64], torch.bfloat16, "grouped"),
        ([1, 64], torch.float32, "batched"),
    ],
)
def test_on_a_gpu_those_of_several_adapters_are_taken_together(
    base: LoadedBase, ranks: list[int], dtype: torch.dtype, form: Form
) -> None:
    host = AdapterHost(base)
    adapters = [host.add(str(k), Recipe(lora_r=rank)) for k, rank in enumerate(ranks)]
    host.base = dataclasses.replace(base, device=torch.device("cuda"), compute_dtype=dtype)
    assert host.choose_form([adapter.rows(1) for adapter in adapters]) == form
    for adapter in adapters:
        host.remove(adapter.name)


@pytest.mark.parametrize(
    ("dropout", "quantization", "device", "passes", "evaluations"),
    [
        (False, "nf4", "cpu", True, True),
        (True, "nf4", "cpu", False, True),
        (False, "int8", "cpu", True, True),
        (False, "int8", "cuda", False, False),
        (False, "nf4", "cuda", True, True),
    ],
)
def test_passes_are_shared_where_rows_do_not_change_each_other(
    base: LoadedBase, dropout: bool, quantization: Quantization, device: str, passes: bool, evaluations: bool
) -> None:
    """A base's own dropout is drawn for a pass as a whole; LLM.int8() on CUDA looks at all its rows."""
    spec = ModelSpec(id=base.spec.id, quantization=quantization)
    host = AdapterHost(dataclasses.replace(base, has_dropout=dropout, spec=spec, device=torch.device(device)))
    assert (host.shares_passes, host.shares_evaluations) == (passes, evaluations)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_adapters_come_and_go_on_a_base_that_checkpoints_and_leave_no_hook(
    tiny_base_dir: Path, quantization: Quantization
) -> None:
    base = load(tiny_base_dir, quantization)
    checkpoint_activations(base.model, True)
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2))
    host.remove("first")
    assert [name for name, module in base.model.named_modules() if module._forward_hooks] == []


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
    host.activate("mine")
    expected = logits_in_eval(base)
    save(host, "mine", tmp_path / "deep" / "best")
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


def test_an_adapters_configuration_is_pefts_and_needs_no_temporary_folder(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary folder that is full must not be taken for a full artifact folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2, target_modules=("q_proj", "v_proj")))
    written = json.loads(host.files("first")["adapter_config.json"])
    host.remove("first")
    LoraConfig(**written).save_pretrained(str(tmp_path))
    pefts = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written == {**pefts, "target_modules": sorted(pefts["target_modules"])}  # a set, in any order
    assert written["target_modules"] == ["q_proj", "v_proj"]


def logits_in_eval(base: LoadedBase) -> torch.Tensor:
    set_training(base.model, False)
    return logits(base)


def test_saving_again_replaces_the_whole_folder(base: LoadedBase, tmp_path: Path) -> None:
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(lora_r=2))
    save(host, "first", tmp_path / "best")
    (tmp_path / "best" / "stale").touch()
    disturb(adapter)
    save(host, "first", tmp_path / "best")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "best",
    ]
    weights = load_file(tmp_path / "best" / "adapter_model.safetensors")
    assert sum(bool(w.any()) for w in weights.values()) == 2 * len(adapter.layers)
    host.remove("first")


def test_a_save_that_fails_leaves_the_older_adapter_and_no_debris(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2))
    save(host, "first", tmp_path / "best")
    before = {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space left"):
            save(host, "first", tmp_path / "best")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before
    host.remove("first")


def test_a_save_that_cannot_be_moved_into_place_leaves_the_older_adapter(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = AdapterHost(base)
    host.add("first", Recipe(lora_r=2))
    save(host, "first", tmp_path / "best")
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
        save(host, "first", tmp_path / "best")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "best").iterdir()} == before
    host.remove("first")


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("where", ["a layer", "the bank", "the views"])
def test_an_adapter_that_cannot_be_made_leaves_nothing_behind(
    base: LoadedBase, where: str, others: int, monkeypatch: pytest.MonkeyPatch
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

    def run_out_of_memory(*_args: object, **_kwargs: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        if where == "a layer":
            patch.setattr(LoraLayer, "update_layer", run_out_at_the_sixth)
        elif where == "the bank":
            patch.setattr("workers.lora.bank.Bank.of", run_out_of_memory)
        else:
            patch.setattr("workers.lora.adapters.LayerAdapter", run_out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            host.add("large", Recipe(lora_r=8))
    assert len(host._banks._banks) == others
    assert [name for name, _ in base.model.named_parameters() if "large" in name] == []
    assert torch.equal(logits_in_eval(base), before)
    if not others:
        assert {name: type(module) for name, module in base.model.named_modules()} == modules
        assert [name for name, _ in base.model.named_parameters()] == parameters
    again = host.add("large", Recipe(lora_r=8))
    assert list(again.layers) == list(range(14))
    assert again.trainable_parameters == sum(m.numel() for m in peft_matrices(base, "large").values())
    host.remove("large")
    for number in range(others):
        host.remove(f"other-{number}")


def test_a_recipe_that_matches_no_layer_leaves_the_base_bare(base: LoadedBase) -> None:
    modules = [name for name, _ in base.model.named_modules()]
    with pytest.raises(AdapterError, match="not a linear layer of LlamaForCausalLM"):
        AdapterHost(base).add("first", Recipe(target_modules=("nowhere",)))
    assert [name for name, _ in base.model.named_modules()] == modules


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("all-linear", "down_proj, gate_proj, up_proj of DeepseekV3ForCausalLM"),
        (("up_proj",), "without also targeting gate_proj"),
    ],
)
def test_layers_that_peft_takes_for_fused_experts_are_refused(
    tmp_path: Path, targets: TargetModules, message: str
) -> None:
    """Its adapter would be one of the experts, made and loaded; other layers of the base can be adapted."""
    base = load(build_tiny_deepseek(tmp_path / "base"), "none")
    host = AdapterHost(base)
    adapter = host.add("first", Recipe(target_modules="attention"))
    before = [name for name, _ in base.model.named_parameters()]
    with pytest.raises(AdapterError, match=message):
        host.add("second", Recipe(target_modules=targets))
    assert [name for name, _ in base.model.named_parameters()] == before
    assert adapter.trainable_parameters > 0


def test_the_saved_adapter_fits_the_unquantized_base_too(
    tiny_base_dir: Path, base: LoadedBase, tmp_path: Path
) -> None:
    host = AdapterHost(base)
    disturb(host.add("first", Recipe(lora_r=4)))
    save(host, "first", tmp_path / "best")
    host.remove("first")
    plain = AutoModelForCausalLM.from_pretrained(tiny_base_dir)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "best"))
    weights = load_file(tmp_path / "best" / "adapter_model.safetensors")
    assert len(weights) == sum("lora_" in name for name, _ in loaded.named_parameters())
