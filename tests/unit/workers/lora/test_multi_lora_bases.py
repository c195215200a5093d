"""Multi-LoRA on whole bases: PEFT's own numbers for every trial, and nothing kept that was not there."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.live_tensors import LiveTensors
from tests.support.workers.models import build_tiny_base, build_tiny_falcon, build_tiny_gpt2, build_tiny_opt
from tests.support.workers.trials import random_examples
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base, set_training
from workers.data.batches import collate
from workers.data.examples import Example
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.lora_dropout import row_keys
from workers.lora.multi_lora import Form
from workers.training.objectives.forward import batch_losses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
FORMS: tuple[Form, ...] = get_args(Form)
BASES: dict[str, Callable[[Path], Path]] = {
    "llama": build_tiny_base,
    "gpt2": build_tiny_gpt2,
    "opt": build_tiny_opt,
    "falcon": build_tiny_falcon,
}
ROWS = (3, 1, 2)

every_form = pytest.mark.parametrize("form", FORMS)


def load(folder: Path, quantization: str, **fields: Any) -> LoadedBase:
    return load_base(
        ModelSpec.model_validate({"id": str(folder), "quantization": quantization, **fields}), CPU
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: build(root / name) for name, build in BASES.items()}


@pytest.fixture(scope="module")
def nf4(folders: dict[str, Path]) -> LoadedBase:
    return load(folders["llama"], "nf4")


def recipes(host: AdapterHost, *, dropout: Sequence[float] = (0.0, 0.0, 0.0)) -> list[Recipe]:
    """Three that differ in rank, scale and layers; the last misses those with an even number."""
    some = tuple(path for number, path in enumerate(host._linear) if number % 2)
    return [
        Recipe(lora_r=4, lora_alpha=6.0, seed=1, lora_dropout=dropout[0]),
        Recipe(lora_r=8, use_rslora=True, seed=2, target_modules="attention", lora_dropout=dropout[1]),
        Recipe(lora_r=1, seed=3, target_modules=some, lora_dropout=dropout[2]),
    ]


def pack(base: LoadedBase, **options: Any) -> tuple[AdapterHost, list[Adapter], list[list[Example]]]:
    """Three trials with trained-looking adapters, and their examples."""
    host = AdapterHost(base)
    adapters = [host.add(f"t{k}", recipe) for k, recipe in enumerate(recipes(host, **options))]
    for k, adapter in enumerate(adapters):
        adapter.master.data.normal_(std=0.1, generator=torch.Generator().manual_seed(k))
    return host, adapters, [random_examples(rows, seed=k) for k, rows in enumerate(ROWS)]


def remove(host: AdapterHost, adapters: Sequence[Adapter]) -> None:
    for adapter in adapters:
        host.remove(adapter.name)


def backward(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[Sequence[Example]],
    form: Form,
    *,
    zero: bool = True,
) -> list[torch.Tensor]:
    """The losses of each trial's targets; its gradient is that of a sum weighted unlike the others'."""
    base = host.base
    batch = collate([example for own in examples for example in own], base.pad_id)
    owners = torch.arange(len(examples)).repeat_interleave(torch.tensor([len(own) for own in examples]))
    trials = owners[batch.positions // batch.input_ids.shape[1]]
    groups = [
        adapter.rows(len(own), row_keys(k, 5, range(len(own))) if adapter.dropout else ())
        for k, (adapter, own) in enumerate(zip(adapters, examples, strict=True))
    ]
    set_training(base.model, True)
    for adapter in adapters if zero else ():
        adapter.gradient.zero_()
    with host.multi_lora.running(groups, tokens=batch.input_ids.shape[1], form=form, device=CPU):
        found = batch_losses(base, batch, 0.1 + trials.float())
        assert found.objective is not None
        found.objective.backward()
    return [found.losses[trials == k] for k in range(len(examples))]


def peft_alone(
    host: AdapterHost, adapter: Adapter, examples: Sequence[Example], weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and flat gradient of one trial by PEFT's own forward and torch's autograd."""
    host.activate(adapter.name)
    set_training(host.base.model, True)
    batch = collate(examples, host.base.pad_id)
    found = batch_losses(host.base, batch, torch.full((batch.supervised_tokens,), weight))
    assert found.objective is not None
    found.objective.backward()
    parts = []
    for number in adapter.layers:
        module = host.base.model.get_submodule(host._linear[number])
        for parameter, transposed in (
            (module.lora_A[adapter.name].weight, False),
            (module.lora_B[adapter.name].weight, True),
        ):
            parts.append((parameter.grad.t() if transposed else parameter.grad).flatten())
            parameter.grad = None
    return found.losses, torch.cat(parts)


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    assert expected.norm() > 0
    assert float((found - expected).norm() / expected.norm()) <= relative


@every_form
@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama", "nf4"),
        ("llama", "int8"),
        ("llama", "none"),
        ("gpt2", "nf4"),
        ("gpt2", "none"),
        ("opt", "nf4"),
        ("opt", "none"),
        ("falcon", "none"),
    ],
)
def test_each_trial_of_a_pack_gets_what_pefts_own_forward_gives(
    folders: dict[str, Path], name: str, quantization: str, form: Form
) -> None:
    """Linear4bit, Linear8bitLt, nn.Linear and Conv1D; rows of a layer apart (Llama) and as one (OPT).

    And outputs that the model changes in place (Falcon).
    """
    host, adapters, examples = pack(load(folders[name], quantization))
    losses = backward(host, adapters, examples, form)
    assert host.multi_lora.rows_separate is True
    for k, adapter in enumerate(adapters):
        expected_losses, expected_gradient = peft_alone(host, adapter, examples[k], 0.1 + k)
        assert_close(losses[k], expected_losses, 1e-5)
        assert_close(adapter.gradient, expected_gradient, 1e-5)


@every_form
def test_in_bfloat16_a_pack_is_as_close_as_rounding_lets_it(folders: dict[str, Path], form: Form) -> None:
    """Adapters and their gradients stay float32."""
    host, adapters, examples = pack(load(folders["llama"], "nf4", compute_dtype="bfloat16"))
    losses = backward(host, adapters, examples, form)
    for k, adapter in enumerate(adapters):
        expected_losses, expected_gradient = peft_alone(host, adapter, examples[k], 0.1 + k)
        assert (adapter.master.dtype, adapter.gradient.dtype) == (torch.float32, torch.float32)
        assert_close(losses[k], expected_losses, 0.02)
        assert_close(adapter.gradient, expected_gradient, 0.06)


@every_form
def test_gradients_of_two_passes_add_up(nf4: LoadedBase, form: Form) -> None:
    """A pass adds to what is there; a trial that has no rows in it keeps what it has."""
    host, adapters, examples = pack(nf4)
    first = [host.add("idle", Recipe(lora_r=2)), *adapters]
    expected = torch.zeros(adapters[0].trainable_parameters)
    for own in (examples[0], examples[1]):
        backward(host, adapters, [own, *examples[1:]], "looped")
        expected += adapters[0].gradient
    first[0].gradient.fill_(3.0)
    for number, own in enumerate((examples[0], examples[1])):
        backward(host, adapters, [own, *examples[1:]], form, zero=number == 0)
    assert_close(adapters[0].gradient, expected, 1e-5)
    assert first[0].gradient.unique().tolist() == [3.0]
    remove(host, first)


@every_form
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_checkpointed_activations_give_the_same_gradients_with_dropout_on(
    folders: dict[str, Path], quantization: str, form: Form
) -> None:
    """Layers run again in the backward pass, and draw the very masks they drew in the forward pass."""
    base = load(folders["llama"], quantization)
    host, adapters, examples = pack(base, dropout=(0.1, 0.0, 0.5))
    runs: list[torch.nn.Module] = []
    first = base.model.model.layers[0].mlp.act_fn
    first.register_forward_hook(lambda module, *_: runs.append(module))
    found = []
    for wanted in (False, True, False):
        checkpoint_activations(base.model, wanted)
        losses = backward(host, adapters, examples, form)
        found.append((losses, [adapter.gradient.clone() for adapter in adapters], len(runs)))
        runs.clear()
    assert [count for _, _, count in found] == [1, 2, 1]
    for losses, gradients, _ in found[1:]:
        assert all(torch.equal(a, e) for a, e in zip(losses, found[0][0], strict=True))
        for gradient, expected in zip(gradients, found[0][1], strict=True):
            assert_close(gradient, expected, 1e-6)


@every_form
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_changes_no_bit_of_its_pack_mates(
    nf4: LoadedBase, form: Form, value: float
) -> None:
    """Through the quantized base and the loss, forward and backward."""
    host, adapters, examples = pack(nf4, dropout=(0.1, 0.1, 0.0))
    expected_losses = backward(host, adapters, examples, form)
    expected = [adapter.gradient.clone() for adapter in adapters]
    adapters[1].master.data[7] = value
    losses = backward(host, adapters, examples, form)
    assert not losses[1].isfinite().any()
    assert not adapters[1].gradient.isfinite().all()
    for k in (0, 2):
        assert torch.equal(losses[k], expected_losses[k])
        assert torch.equal(adapters[k].gradient, expected[k])
    remove(host, adapters)


@pytest.fixture(scope="module", params=["nf4", "int8"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    """A base whose dequantized layers outweigh the activations of a few tokens."""
    folder = tmp_path_factory.mktemp("wide") / "base"
    return load(build_tiny_base(folder, hidden_size=256, intermediate_size=1024), request.param)


LAYER_BYTES = 4 * 256 * 1024
"""Of one dequantized MLP layer of the wide base."""


@pytest.mark.parametrize("checkpointed", [False, True])
@every_form
def test_no_dequantized_copy_of_the_base_outlives_its_product(
    wide: LoadedBase, form: Form, checkpointed: bool
) -> None:
    """Between forward and backward less is alive than one layer's weight; after the pass, nothing new."""
    host = AdapterHost(wide)
    adapters = [host.add(name, Recipe(lora_r=1, lora_dropout=0.0)) for name in ("first", "second")]
    groups = [adapter.rows(1) for adapter in adapters]
    examples = random_examples(2, longest=5)
    batch = collate(examples, wide.pad_id)
    set_training(wide.model, True)
    checkpoint_activations(wide.model, checkpointed)
    with LiveTensors() as watch:
        with host.multi_lora.running(groups, tokens=batch.input_ids.shape[1], form=form, device=CPU):
            found = batch_losses(wide, batch, torch.ones(batch.supervised_tokens))
            between = watch.live
            assert found.objective is not None
            found.objective.backward()
        del found
        gc.collect()
        after = watch.live
    checkpoint_activations(wide.model, False)
    remove(host, adapters)
    assert watch.largest >= LAYER_BYTES  # a layer's weight was made, so the watch would have seen it kept
    assert 0 < between < LAYER_BYTES
    assert after < LAYER_BYTES / 100


def test_the_watch_counts_what_is_kept_and_forgets_what_is_not() -> None:
    with LiveTensors() as watch:
        kept = torch.ones(1024, 256)
        view = kept[:3].t()
        assert watch.live == LAYER_BYTES
        del kept
        assert watch.live == LAYER_BYTES
        del view
        assert (watch.live, watch.peak) == (0, LAYER_BYTES)
