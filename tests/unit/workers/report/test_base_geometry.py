"""A base's size from its configuration, against the base as it is loaded."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from search_spaces.data_report import AdapterShape
from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.checkout import ROOT
from workers.base.base_model import load_base
from workers.base.decoded_weights import is_decoded, keep_decoded
from workers.lora.adapters import AdapterHost
from workers.report.base_geometry import read_geometry

# transformers' own, from within PEFT.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUICKSTART = ROOT / "examples/quickstart/base"


def loaded_bytes(spec: ModelSpec) -> int:
    """Weights and quantization constants of the loaded model, the quantization's code books left out."""
    model = load_base(spec, torch.device("cpu")).model
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                total += state.state2.absmax.numel() * state.state2.absmax.element_size()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            total += module.out_features * 4
    return total


@pytest.mark.parametrize(
    ("quantization", "double"),
    [("nf4", True), ("nf4", False), ("int8", True), ("none", True)],
)
def test_the_base_takes_the_bytes_that_were_told(quantization: Any, double: bool) -> None:
    spec = ModelSpec(id=str(QUICKSTART), quantization=quantization, double_quantization=double)
    told = read_geometry(QUICKSTART, spec.id).base_bytes(spec, quantization, "float32")
    assert told.bytes == loaded_bytes(spec)


@pytest.mark.parametrize(
    ("quantization", "dtype", "size"),
    [
        ("nf4", "float32", 4),
        ("fp4", "bfloat16", 2),
        ("int8", "float32", 4),
        ("int8", "bfloat16", 0),
        ("none", "float32", 0),
    ],
)
def test_what_keeping_decoded_weights_takes(quantization: Any, dtype: Any, size: int) -> None:
    """LLM.int8() on a GPU, in half precision, is never decoded."""
    spec = ModelSpec(id=str(QUICKSTART), quantization=quantization)
    geometry = read_geometry(QUICKSTART, spec.id)
    told = geometry.base_bytes(spec, quantization, dtype)
    assert told.decoded_bytes == size * geometry.quantizable_parameters
    if size == 4:
        base = load_base(spec, torch.device("cpu"))
        assert keep_decoded(base, "always")
        kept = [vars(m)["forward"].args[0] for m in base.model.modules() if is_decoded(m)]
        assert told.decoded_bytes == sum(weight.nbytes for weight in kept)


@pytest.mark.parametrize("targets", ["all-linear", "attention", ("q_proj", "down_proj")])
def test_an_adapter_has_the_parameters_that_were_told(targets: Any) -> None:
    geometry = read_geometry(QUICKSTART, "quickstart")
    shape = AdapterShape(lora_r=4, target_modules=targets, optimizer="adamw")
    host = AdapterHost(load_base(ModelSpec(id=str(QUICKSTART), quantization="none"), torch.device("cpu")))
    adapter = host.add("one", Recipe(lora_r=4, target_modules=targets))
    told = geometry.adapter(shape)
    assert told.trainable_parameters == adapter.trainable_parameters
    # Weights, two gradients and two moments: what a trial with more than one row to a batch holds.
    assert told.bytes == 20 * adapter.trainable_parameters


def test_the_vocabulary_and_the_positions_are_the_models() -> None:
    geometry = read_geometry(QUICKSTART, "quickstart")
    base = load_base(ModelSpec(id=str(QUICKSTART), quantization="none"), torch.device("cpu"))
    assert (geometry.vocabulary_size, geometry.max_positions) == (base.vocabulary_size, base.max_positions)
