"""Pairs of answers: their rows, each trial's own loss in a shared pass, and what evaluations come to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.trials import random_examples
from workers.base.base_model import LoadedBase, load_base, set_training
from workers.data.examples import Example, PairExample
from workers.lora.adapters import Adapter, AdapterHost
from workers.training.objectives.base import PassLosses, Share
from workers.training.objectives.pairs import PairTally, PreferredPairs, RankedPairs, rows_of

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
RECIPES = [
    Recipe(seed=1, preference_beta=0.5, label_smoothing=0.1),
    Recipe(seed=2, loss="orpo", preference_beta=0.3),
    Recipe(seed=3, loss="simpo", preference_beta=2.0, simpo_gamma=0.7),
    Recipe(seed=4, loss="dpo", preference_beta=0.05, lora_r=4),
]


def pairs(count: int) -> list[PairExample]:
    rows = random_examples(2 * count, seed=3)
    both = zip(rows[::2], rows[1::2], strict=True)
    return [PairExample(*two, (-30.0 - n, -35.0 + n)) for n, two in enumerate(both)]


PAIRS = pairs(8)


@pytest.fixture(scope="module")
def host(tiny_base_dir: Path) -> AdapterHost:
    spec = ModelSpec(id=str(tiny_base_dir), quantization="none")
    return AdapterHost(load_base(spec, CPU, task="preference"))


def one_pass(host: AdapterHost, parts: list[tuple[Adapter, list[PairExample]]]) -> PassLosses:
    """Forward and backward over each adapter's pairs."""
    base, objective = host.base, PreferredPairs()
    set_training(base.model, True)
    batch = objective.collate([pair for _, own in parts for pair in own], base)
    shares = [Share(len(own), adapter.recipe, 1 / len(own)) for adapter, own in parts]
    owners = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(own) for _, own in parts]))
    groups = [adapter.rows(2 * len(own)) for adapter, own in parts]
    for adapter, _ in parts:
        adapter.gradient.zero_()
    with host.multi_lora.running(
        groups, tokens=batch.tokens, form="looped", device=CPU, row_lengths=batch.row_lengths
    ):
        found = objective.losses(base, batch, owners, shares, gradient=True)
        assert found.objective is not None
        found.objective.backward()  # type: ignore[no-untyped-call]
    return found


def test_trials_with_different_losses_in_one_pass_are_as_each_alone(host: AdapterHost) -> None:
    adapters = [host.add(str(recipe.seed), recipe) for recipe in RECIPES]
    for number, adapter in enumerate(adapters):
        torch.nn.init.normal_(adapter.master, std=0.05, generator=torch.Generator().manual_seed(number))
    parts = [(adapter, PAIRS[: number + 1]) for number, adapter in enumerate(adapters)]
    try:
        together = one_pass(host, parts)
        gradients = [adapter.gradient.clone() for adapter in adapters]
        first = 0
        for part, gradient in zip(parts, gradients, strict=True):
            alone = one_pass(host, [part])
            span = slice(first, first := first + len(part[1]))
            torch.testing.assert_close(together.losses[span], alone.losses, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.answers[span], alone.answers, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(gradient, part[0].gradient, rtol=1e-3, atol=1e-5)
            assert gradient.norm() > 1e-3
    finally:
        for adapter in adapters:
            host.remove(adapter.name)


@torch.no_grad()
def log_probabilities(model: Any, row: Example) -> torch.Tensor:
    logits = model(input_ids=row.input_ids[None]).logits[0, :-1].log_softmax(-1)
    own = logits.gather(1, row.input_ids[1:, None]).squeeze(1)
    return own[row.labels[1:] != -100]


def test_each_loss_is_that_of_its_paper(host: AdapterHost) -> None:
    """With log-probabilities from transformers, row by row."""
    adapters = [host.add(str(recipe.seed), recipe) for recipe in RECIPES]
    for adapter in adapters:
        torch.nn.init.normal_(adapter.master, std=0.05, generator=torch.Generator().manual_seed(7))
    try:
        for adapter in adapters:
            recipe = adapter.recipe
            found = one_pass(host, [(adapter, PAIRS)])
            host.activate(adapter.name)
            for pair, loss in zip(PAIRS, found.losses, strict=True):
                chosen, rejected = (
                    log_probabilities(host.base.model, row) for row in (pair.chosen, pair.rejected)
                )
                assert pair.reference is not None
                beta, smoothing = recipe.preference_beta, recipe.label_smoothing
                if recipe.loss == "orpo":
                    odds = [mean - torch.log1p(-mean.exp()) for mean in (chosen.mean(), rejected.mean())]
                    expected = -chosen.mean() - beta * F.logsigmoid(odds[0] - odds[1])
                elif recipe.loss == "simpo":
                    expected = -F.logsigmoid(beta * (chosen.mean() - rejected.mean()) - recipe.simpo_gamma)
                else:
                    ratios = chosen.sum() - rejected.sum() - (pair.reference[0] - pair.reference[1])
                    margin = beta * ratios
                    expected = -F.logsigmoid(margin) * (1 - smoothing) - F.logsigmoid(-margin) * smoothing
                torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    finally:
        for adapter in adapters:
            host.remove(adapter.name)


def test_references_are_given_only_if_all_pairs_have_theirs(host: AdapterHost) -> None:
    objective, bare = PreferredPairs(), PairExample(PAIRS[0].chosen, PAIRS[0].rejected)
    batch = objective.collate(PAIRS[:2], host.base)
    assert batch.references is not None
    assert batch.references.tolist() == [-30.0, -35.0, -31.0, -34.0]
    assert objective.collate([PAIRS[0], bare], host.base).references is None
    assert (batch.rows, batch.target_examples.tolist()) == (4, [0, 1])
    assert rows_of(PAIRS[:2]) == [PAIRS[0].chosen, PAIRS[0].rejected, PAIRS[1].chosen, PAIRS[1].rejected]


def test_ranked_rows_have_their_types_and_a_loss_of_the_difference_of_scores() -> None:
    def row(*ids: int) -> Example:
        given = torch.tensor(ids)
        return Example(given, given, torch.tensor([0, *[1] * (len(ids) - 1)]))

    given: dict[str, torch.Tensor] = {}
    scores = torch.tensor([[2.0], [1.0], [0.5], [1.5], [-1.0], [-4.0]], requires_grad=True)

    def model(**inputs: torch.Tensor) -> Any:
        given.update(inputs)
        return SimpleNamespace(logits=scores)

    base = cast(LoadedBase, SimpleNamespace(model=model, pad_id=9, device=CPU, compute_dtype=torch.float32))
    objective = RankedPairs()
    some = [PairExample(row(5, 6, 7), row(5, 6)), *[PairExample(row(5, 8), row(5, 4))] * 2]
    batch = objective.collate(some, base)
    shares = [Share(1, Recipe(), 0.5), Share(2, Recipe(), 2.0)]
    found = objective.losses(base, batch, torch.tensor([0, 1, 1]), shares, gradient=True)
    assert given["input_ids"][:2].tolist() == [[5, 6, 7], [5, 6, 9]]
    assert given["token_type_ids"][:2].tolist() == [[0, 1, 1], [0, 1, 0]]
    assert given["attention_mask"][:2].tolist() == [[1, 1, 1], [1, 1, 0]]
    margins = torch.tensor([1.0, -1.0, 3.0])
    losses = -F.logsigmoid(margins)
    torch.testing.assert_close(found.losses, losses)
    torch.testing.assert_close(found.answers, margins)
    assert found.objective is not None
    torch.testing.assert_close(found.objective.detach(), (losses * torch.tensor([0.5, 2.0, 2.0])).sum())


@pytest.mark.parametrize("orders", [[[0, 1, 2], [3]], [[3, 1], [0], [2]]])
def test_an_evaluation_does_not_depend_on_the_order_of_its_passes(orders: list[list[int]]) -> None:
    losses = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]])
    margins = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.0, -1.0, 2.0, -0.5]])
    tally = PairTally(2, "reward_accuracy")
    for indices in orders:
        tally.add(
            PassLosses(losses[:, indices].flatten(), None, margins[:, indices].flatten()), None, indices
        )
    first, second = tally.results()
    assert torch.equal(first.losses, losses[0])
    assert torch.equal(second.margins, margins[1])
    assert first.metrics() == pytest.approx({"eval_loss": 0.25, "reward_accuracy": 0.75, "margin": 0.625})
    assert second.metrics() == pytest.approx({"eval_loss": 2.5, "reward_accuracy": 0.25, "margin": -0.125})
