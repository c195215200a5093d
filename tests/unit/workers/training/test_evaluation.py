"""Evaluation: token-weighted, independent of batching, without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.trials import random_examples
from workers.base import causal_attention
from workers.base.base_model import LoadedBase, load_base, set_training
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import RowsUnknownError
from workers.training.evaluation import evaluate, length_batches
from workers.training.objectives.language import Totals

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(odd_base_dir: Path) -> LoadedBase:
    """A quantized base whose layers would crash in bitsandbytes' own evaluation mode on some CPUs."""
    return load_base(ModelSpec(id=str(odd_base_dir)), CPU)


@pytest.fixture
def host(base: LoadedBase) -> Iterator[AdapterHost]:
    """With three adapters that have learned something; dropout must not matter."""
    host = AdapterHost(base)
    yield host
    for name in list(host._names):
        host.remove(name)


@pytest.fixture
def adapters(host: AdapterHost) -> list[Adapter]:
    recipes = [
        Recipe(lora_r=2, lora_dropout=0.5),
        Recipe(lora_r=8, target_modules="attention"),
        Recipe(lora_r=4, use_rslora=True, target_modules=("down_proj",)),
    ]
    made = [host.add(f"t{k}", recipe) for k, recipe in enumerate(recipes)]
    for k, adapter in enumerate(made):
        adapter.master.data.normal_(std=0.1, generator=torch.Generator().manual_seed(k))
    return made


def as_numbers(totals: list[Totals]) -> Any:
    """Loss to rounding, counts exactly."""
    return [(pytest.approx(total.loss_sum, rel=1e-5), total.correct, total.tokens) for total in totals]


def test_the_metrics_are_those_of_one_example_at_a_time(host: AdapterHost, adapters: list[Adapter]) -> None:
    """By PEFT's own forward and the model's own logits."""
    examples = random_examples(11)
    found = evaluate(host, adapters, examples, token_budget=100)
    for adapter, totals in zip(adapters, found, strict=True):
        host.activate(adapter.name)
        loss_sum, correct, tokens = 0.0, 0, 0
        with torch.no_grad():
            for example in examples:
                logits = host.base.model(input_ids=example.input_ids[None]).logits[0, :-1].double()
                targets = example.labels[1:]
                loss_sum += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
                correct += int((logits.argmax(-1) == targets)[targets != -100].sum())
                tokens += int((targets != -100).sum())
        assert (totals.correct, totals.tokens) == (correct, tokens)
        assert totals.metrics() == pytest.approx(
            {
                "eval_loss": loss_sum / tokens,
                "perplexity": math.exp(loss_sum / tokens),
                "accuracy": correct / tokens,
            },
            rel=1e-5,
        )
    assert len({totals.loss_sum for totals in found}) == 3


@pytest.mark.parametrize("token_budget", [1, 30, 64, 10_000])
def test_neither_the_token_budget_nor_pack_mates_change_the_metrics(
    host: AdapterHost, adapters: list[Adapter], token_budget: int
) -> None:
    examples = random_examples(9)
    expected = [evaluate(host, [adapter], examples, token_budget=64)[0] for adapter in adapters]
    assert as_numbers(evaluate(host, adapters, examples, token_budget=token_budget)) == [
        (total.loss_sum, total.correct, total.tokens) for total in expected
    ]


class Passes:
    """Counts rows and tokens of each pass that the model runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self._handle = model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        laid = causal_attention._layout.lengths
        self.rows.append(inputs[0].shape[0] if laid is None else len(laid))
        self.tokens.append(inputs[0].numel())

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_error: object) -> None:
        self._handle.remove()


def test_adapters_share_passes_within_the_budget(host: AdapterHost, adapters: list[Adapter]) -> None:
    """Every example is run once for each adapter, in passes that hold the rows of all of them."""
    examples = random_examples(10)
    longest = max(len(example.input_ids) for example in examples)
    with Passes(host.base.model) as passes:
        evaluate(host, adapters, examples, token_budget=6 * longest)
    assert sum(passes.rows) == 3 * len(examples)
    assert {rows % 3 for rows in passes.rows} == {0}
    assert max(passes.tokens) <= 6 * longest


def test_a_budget_for_two_rows_evaluates_two_adapters_at_a_time(
    host: AdapterHost, adapters: list[Adapter]
) -> None:
    """A pass holds the longest example of each of them; the budget decides how many that are."""
    examples = random_examples(3)
    longest = max(len(example.input_ids) for example in examples)
    with Passes(host.base.model) as passes:
        evaluate(host, adapters, examples, token_budget=2 * longest)
    assert sum(passes.rows) == 9
    assert max(passes.tokens) <= 2 * longest


def test_a_base_whose_rows_change_each_other_is_evaluated_one_adapter_at_a_time(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = random_examples(4)
    expected = evaluate(host, adapters, examples, token_budget=1000)
    monkeypatch.setattr(LoadedBase, "rows_independent", property(lambda _base: False))
    with Passes(host.base.model) as passes:
        found = evaluate(host, adapters, examples, token_budget=1000)
    assert passes.rows == [4, 4, 4]
    assert as_numbers(found) == [(total.loss_sum, total.correct, total.tokens) for total in expected]


def test_where_a_layer_does_not_know_its_rows_adapters_are_evaluated_one_at_a_time(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows in the first shared pass; from then on the host knows."""
    examples = random_examples(4)
    expected = evaluate(host, adapters, examples, token_budget=1000)
    by_rows = type(host.multi_lora)._by_rows

    def forget_rows(self: Any, x: torch.Tensor, lora_pass: Any) -> torch.Tensor:
        if len(lora_pass.groups) > 1:
            return by_rows(self, x.flatten(0, 1)[1:], lora_pass)
        return by_rows(self, x, lora_pass)

    monkeypatch.setattr(type(host.multi_lora), "_by_rows", forget_rows)
    with Passes(host.base.model) as passes:
        found = evaluate(host, adapters, examples, token_budget=1000)
        evaluate(host, adapters, examples, token_budget=1000)
    assert passes.rows == [12, 4, 4, 4, 4, 4, 4]
    assert as_numbers(found) == [(total.loss_sum, total.correct, total.tokens) for total in expected]


def test_a_layer_that_does_not_even_know_the_rows_of_one_trial_is_an_error(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be tried for ever."""

    def refuse(_self: Any, _x: torch.Tensor, _lora_pass: Any) -> torch.Tensor:
        raise RowsUnknownError("no rows")

    monkeypatch.setattr(type(host.multi_lora), "_by_rows", refuse)
    with pytest.raises(RowsUnknownError):
        evaluate(host, adapters[:1], random_examples(2), token_budget=100)


def test_evaluating_draws_nothing_and_leaves_quantized_layers_in_training_mode(
    host: AdapterHost, adapters: list[Adapter]
) -> None:
    """Nor does it move a parameter or a gradient."""
    model = host.base.model
    set_training(model, True)
    state = torch.get_rng_state()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for adapter in adapters:
        adapter.gradient.fill_(2.0)
    evaluate(host, adapters, random_examples(4), token_budget=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert {m.training for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)} == {True}
    assert model.training is False
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert {value for adapter in adapters for value in adapter.gradient.unique().tolist()} == {2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_leaves_its_pack_mates_totals(
    host: AdapterHost, adapters: list[Adapter], value: float
) -> None:
    examples = random_examples(5)
    expected = evaluate(host, adapters, examples, token_budget=1000)
    adapters[2].master.data[3] = value
    found = evaluate(host, adapters, examples, token_budget=1000)
    assert math.isnan(found[2].loss_sum)
    assert found[:2] == expected[:2]


def test_running_out_of_memory_is_for_the_caller_to_mend(
    host: AdapterHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_args: object, **_kwargs: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("workers.training.objectives.language.batch_losses", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(host, adapters, random_examples(2), token_budget=100)
    assert host.multi_lora._running is None


def test_perplexity_of_a_huge_loss_is_infinite_rather_than_an_error() -> None:
    assert Totals(loss_sum=8000.0, correct=0, tokens=10).metrics()["perplexity"] == math.inf


def test_totals_add_up() -> None:
    assert Totals(1.0, 2, 3) + Totals(0.5, 1, 4) == Totals(1.5, 3, 7)


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 300))
def test_length_batches_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
