"""Evaluation: token-weighted, independent of batching, without side effects."""

from __future__ import annotations

import math
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import ModelSpec
from tests.tiny_trials import random_examples
from workers.base_model import LoadedBase, load_base, set_training
from workers.evaluation import Totals, evaluate, length_batches

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(odd_base_dir: Path) -> LoadedBase:
    """A quantized base whose layers would crash in bitsandbytes' own evaluation mode on some CPUs."""
    return load_base(ModelSpec(id=str(odd_base_dir)), CPU)


def test_the_metrics_are_those_of_one_example_at_a_time(base: LoadedBase) -> None:
    examples = random_examples(11)
    loss_sum, correct, tokens = 0.0, 0, 0
    with torch.no_grad():
        for example in examples:
            logits = base.model(input_ids=example.input_ids[None]).logits[0, :-1].double()
            targets = example.labels[1:]
            loss_sum += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
            correct += int((logits.argmax(-1) == targets)[targets != -100].sum())
            tokens += int((targets != -100).sum())
    totals = evaluate(base, examples, token_budget=100)
    assert (totals.correct, totals.tokens) == (correct, tokens)
    assert totals.metrics() == pytest.approx(
        {
            "eval_loss": loss_sum / tokens,
            "perplexity": math.exp(loss_sum / tokens),
            "accuracy": correct / tokens,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("token_budget", [1, 30, 10_000])
def test_the_token_budget_does_not_change_the_metrics(base: LoadedBase, token_budget: int) -> None:
    examples = random_examples(9)
    expected = evaluate(base, examples, token_budget=64).metrics()
    assert evaluate(base, examples, token_budget=token_budget).metrics() == pytest.approx(expected, rel=1e-5)


def test_evaluating_draws_nothing_and_leaves_quantized_layers_in_training_mode(base: LoadedBase) -> None:
    set_training(base.model, True)
    state = torch.get_rng_state()
    weights = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    evaluate(base, random_examples(4), token_budget=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert {m.training for m in base.model.modules() if isinstance(m, bnb.nn.Linear4bit)} == {True}
    assert base.model.training is False
    assert all(torch.equal(p, weights[n]) for n, p in base.model.named_parameters())


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
