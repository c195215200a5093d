"""Rows laid end to end: the same numbers as with padding, whatever shares the pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.models import (
    build_tiny_base,
    build_tiny_bert,
    build_tiny_falcon,
    build_tiny_gpt2,
    build_tiny_opt,
    build_tiny_t5,
)
from tests.support.workers.trials import new_run, random_examples, relative_difference, train_together
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base
from workers.data.batches import collate, lay_end_to_end
from workers.data.examples import PairExample
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import Form
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = random_examples(16, seed=3)
PAIRS = [PairExample(one, other) for one, other in zip(ROWS[::2], ROWS[1::2], strict=True)]
BASES: dict[str, Callable[[Path], Path]] = {
    "llama": build_tiny_base,
    "opt": build_tiny_opt,
    "gpt2": build_tiny_gpt2,
}
TRIALS = {
    "plain": Recipe(learning_rate=1e-2, batch_size=4, lora_r=4, lora_dropout=0.0, adam_epsilon=1e-4, seed=1),
    "dropout": Recipe(
        learning_rate=1e-2, batch_size=3, lora_r=8, lora_dropout=0.3, adam_epsilon=1e-4, seed=2
    ),
    "noise": Recipe(
        learning_rate=1e-2,
        batch_size=1,
        lora_r=2,
        lora_dropout=0.1,
        neftune_alpha=5,
        adam_epsilon=1e-4,
        target_modules="attention",
        seed=3,
    ),
}


def load(folder: Path, task: Task = "causal_lm", **fields: Any) -> LoadedBase:
    spec = ModelSpec.model_validate({"id": str(folder), "quantization": "nf4", **fields})
    return load_base(spec, torch.device("cpu"), task=task)


def with_loss(loss: str | None) -> dict[str, Recipe]:
    return {name: recipe.model_copy(update={"loss": loss}) for name, recipe in TRIALS.items()}


def assert_trained_alike(base: LoadedBase, trials: dict[str, Recipe], examples: Any, **options: Any) -> None:
    padded = train_together(replace(base, padding_free=False), trials, examples, token_budget=150)
    free = train_together(base, trials, examples, token_budget=150, **options)
    for name in trials:
        expected, found = padded.trained[name], free.trained[name]
        assert found.losses == pytest.approx(expected.losses, rel=1e-4)
        assert relative_difference(found.weights, expected.weights) < 1e-4


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("name", BASES)
def test_trials_train_to_the_same_adapters_as_with_padding(tmp_path: Path, name: str, form: Form) -> None:
    base = load(BASES[name](tmp_path / name))
    assert base.padding_free
    assert_trained_alike(base, TRIALS, ROWS, form=form)


def test_with_activations_computed_again_in_the_backward_pass(tmp_path: Path) -> None:
    base = load(build_tiny_base(tmp_path / "base"))
    checkpoint_activations(base.model, True)
    assert_trained_alike(base, TRIALS, ROWS)


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_pairs_too(tmp_path: Path, loss: str) -> None:
    base = load(build_tiny_base(tmp_path / "base"), "preference")
    assert base.padding_free
    assert_trained_alike(base, with_loss(loss), PAIRS)


def test_logits_that_are_not_the_heads_alone_are_the_same(tmp_path: Path) -> None:
    base = load(build_tiny_base(tmp_path / "base"))
    assert_trained_alike(replace(base, head_is_plain=False), TRIALS, ROWS)


def test_an_evaluation_comes_to_the_same(tmp_path: Path) -> None:
    base = load(build_tiny_base(tmp_path / "base"))
    found = []
    for padding_free in (False, True):
        host = AdapterHost(replace(base, padding_free=padding_free))
        adapters = [host.add(name, recipe) for name, recipe in TRIALS.items()]
        for number, adapter in enumerate(adapters):
            adapter.master.data.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        passes = SharedPasses(host, token_budget=90)
        found.append([passes.measure_start(adapter, ROWS) for adapter in adapters])
        for adapter in adapters:
            host.remove(adapter.name)
    for padded, free in zip(*found, strict=True):
        assert free.loss_sum == pytest.approx(padded.loss_sum, rel=1e-5)
        assert free.metrics() == pytest.approx(padded.metrics(), rel=1e-5)


@pytest.mark.parametrize("examples", [ROWS, PAIRS])
def test_no_position_of_a_pass_is_padding(tmp_path: Path, examples: Any) -> None:
    pairs = isinstance(examples[0], PairExample)
    base = load(build_tiny_base(tmp_path / "base"), "preference" if pairs else "causal_lm")
    host = AdapterHost(base)
    runs = [
        new_run(host, recipe, examples, name=name)
        for name, recipe in with_loss("orpo" if pairs else None).items()
    ]
    passes = SharedPasses(host, token_budget=150)
    for run in runs:
        passes.finish_batch(run)
        assert 0 < run.real_tokens == run.padded_tokens
        host.remove(run.adapter.name)


def test_targets_and_their_examples_are_those_of_the_padded_batch() -> None:
    padded, free = collate(ROWS, 0), lay_end_to_end(ROWS)
    assert torch.equal(free.targets, padded.targets)
    assert torch.equal(free.target_examples, padded.target_examples)
    assert torch.equal(free.input_ids[0, free.positions], padded.input_ids.flatten()[padded.positions])
    assert (free.rows, free.tokens) == (len(ROWS), sum(row.length for row in ROWS))


@pytest.mark.parametrize(
    ("build", "task"),
    [
        (build_tiny_falcon, "causal_lm"),  # does not look its attention up under a name
        (
            lambda folder: build_tiny_gpt2(folder, dropout=0.1),
            "causal_lm",
        ),  # draws dropout for a pass as a whole
        (build_tiny_t5, "seq2seq_lm"),
        (build_tiny_bert, "sequence_classification"),
        (build_tiny_base, "sequence_classification"),  # its head looks for a row's last token
    ],
)
def test_bases_that_need_their_rows_apart_keep_them(
    tmp_path: Path, build: Callable[[Path], Path], task: Task
) -> None:
    assert not load(build(tmp_path / "base"), task).padding_free
