"""Decoded weights that are kept: the same numbers bit for bit, and nothing decoded in a pass."""

from __future__ import annotations

import gc
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.live_tensors import LiveTensors
from tests.support.workers.models import build_tiny_base, build_tiny_gpt2
from workers.base import decoded_weights
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base, set_training
from workers.base.decoded_weights import is_decoded, keep_decoded
from workers.errors import ModelError
from workers.lora.adapters import AdapterHost

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
IDS = torch.arange(8, 40).reshape(2, 16)
QUANTIZED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"llama": build_tiny_base(root / "llama"), "gpt2": build_tiny_gpt2(root / "gpt2")}


def load(folder: Path, quantization: str = "nf4", **fields: object) -> LoadedBase:
    spec = {"id": str(folder), "quantization": quantization, "dropout": "off", **fields}
    return load_base(ModelSpec.model_validate(spec), CPU)


def layers(base: LoadedBase) -> list[torch.nn.Module]:
    return [module for module in base.model.modules() if isinstance(module, QUANTIZED)]


def numbers(base: LoadedBase) -> list[torch.Tensor]:
    """Of a training pass with PEFT's own forward and of an evaluation: losses, gradients, logits."""
    host = AdapterHost(base)
    adapter = host.add("alone", Recipe(lora_r=4, lora_dropout=0.0))
    adapter.master.data.normal_(generator=torch.Generator().manual_seed(0), std=0.05)
    host.activate("alone")
    set_training(base.model, True)
    output = base.model(input_ids=IDS, labels=IDS)
    output.loss.backward()
    parameters = [parameter for parameter in base.model.parameters() if parameter.grad is not None]
    found = [output.loss.detach(), *(parameter.grad.clone() for parameter in parameters)]
    set_training(base.model, False)
    with torch.no_grad():
        found.append(base.model(input_ids=IDS).logits)
    host.remove("alone")
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_numbers_are_those_of_the_quantized_base_bit_for_bit(
    folders: dict[str, Path], name: str, quantization: str, dtype: str
) -> None:
    base = load(folders[name], quantization, compute_dtype=dtype)
    expected = numbers(base)
    assert keep_decoded(base, "always") is True
    assert layers(base)
    assert all(is_decoded(layer) for layer in layers(base))
    found = numbers(base)
    assert len(expected) > 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_without_double_quantization_too(folders: dict[str, Path]) -> None:
    base = load(folders["llama"], double_quantization=False)
    expected = numbers(base)
    keep_decoded(base, "always")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(numbers(base), expected, strict=True))


def test_never_gives_the_memory_back(folders: dict[str, Path]) -> None:
    base = load(folders["llama"])
    expected = numbers(base)
    with LiveTensors() as watch:
        keep_decoded(base, "always")
        kept = watch.live
        assert keep_decoded(base, "never") is False
        gc.collect()
        assert watch.live == 0
    assert kept >= sum(4 * layer.in_features * layer.out_features for layer in layers(base))
    assert not any(is_decoded(layer) for layer in layers(base))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(numbers(base), expected, strict=True))


def test_to_ask_again_decodes_nothing_again(folders: dict[str, Path]) -> None:
    base = load(folders["llama"])
    keep_decoded(base, "always")
    before = [vars(layer)["forward"] for layer in layers(base)]
    assert keep_decoded(base, "always") is True
    assert keep_decoded(base, "auto") is True
    assert all(vars(layer)["forward"] is one for layer, one in zip(layers(base), before, strict=True))


def test_auto_keeps_them_where_they_take_at_most_half_of_what_is_left(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(folders["llama"])
    size = sum(4 * layer.in_features * layer.out_features for layer in layers(base))
    monkeypatch.setattr(decoded_weights, "available_bytes", lambda device: 2 * size - 1)
    assert keep_decoded(base, "auto") is False
    assert not any(is_decoded(layer) for layer in layers(base))
    monkeypatch.setattr(decoded_weights, "available_bytes", lambda device: 2 * size)
    assert keep_decoded(base, "auto") is True


@pytest.mark.parametrize("wanted", ["auto", "always"])
def test_weights_that_do_not_fit_after_all_are_given_up_together(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    base = load(folders["llama"])
    expected = numbers(base)
    decode, calls = decoded_weights._decode, []

    def fail_at_third(layer: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        calls.append(layer)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return decode(layer, dtype)

    monkeypatch.setattr(decoded_weights, "_decode", fail_at_third)
    if wanted == "always":
        with pytest.raises(ModelError, match=r"GiB, do not fit the memory of cpu.*resources\.keep_decoded"):
            keep_decoded(base, "always")
    else:
        assert keep_decoded(base, "auto") is False
    assert not any(is_decoded(layer) for layer in layers(base))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(numbers(base), expected, strict=True))


def test_an_unquantized_base_has_nothing_to_decode(folders: dict[str, Path]) -> None:
    assert keep_decoded(load(folders["llama"], "none"), "always") is False


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_no_weight_is_decoded_in_a_pass(tmp_path: Path, quantization: str, checkpointed: bool) -> None:
    wide = load(build_tiny_base(tmp_path / "wide", hidden_size=256, intermediate_size=1024), quantization)
    checkpoint_activations(wide.model, checkpointed)
    layer_bytes = 4 * 256 * 1024
    largest = []
    for wanted in ("never", "always"):
        keep_decoded(wide, wanted)  # type: ignore[arg-type]
        with LiveTensors() as watch:
            numbers(wide)
        largest.append(watch.largest)
    assert largest[0] >= layer_bytes > largest[1]
