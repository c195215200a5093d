"""Objectives of language models: what torch's autograd makes of the loss over whole logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces.definition import ModelSpec
from tests.support.workers.trials import random_examples
from workers.base.base_model import LoadedBase, load_base
from workers.data.batches import collate
from workers.training.objectives.forward import batch_losses, focal_factor
from workers.training.objectives.losses import class_losses

EXAMPLES = random_examples(3, seed=2)


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), torch.device("cpu"))


@pytest.mark.parametrize("head_is_plain", [True, False])
@pytest.mark.parametrize(
    ("smoothings", "gammas"),
    [([0.0, 0.2], None), (None, [0.0, 2.0]), (None, [0.5, 3.0]), ([0.1, 0.3], [2.0, 0.5])],
)
def test_the_gradient_is_that_of_the_loss_over_whole_logits(
    base: LoadedBase, smoothings: list[float] | None, gammas: list[float] | None, head_is_plain: bool
) -> None:
    batch = collate(EXAMPLES, base.pad_id)
    owners = torch.arange(len(batch.targets)) % 2
    weights = torch.linspace(0.1, 0.9, len(owners))
    embeddings = base.model.get_input_embeddings().weight
    embeddings.requires_grad_(True)
    try:
        found = batch_losses(
            replace(base, head_is_plain=head_is_plain),
            batch,
            weights,
            smoothing=None if smoothings is None else torch.tensor(smoothings)[owners],
            focus=None if gammas is None else torch.tensor(gammas)[owners],
        )
        assert found.objective is not None
        (gradient,) = torch.autograd.grad(found.objective, embeddings)

        logits = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        own = logits.flatten(0, 1)[batch.positions]
        expected = torch.zeros(())
        for trial in (0, 1):
            mine = owners == trial
            losses = class_losses(
                own[mine], batch.targets[mine], loss="focal", focal_gamma=gammas[trial] if gammas else 0.0
            )
            even = -own[mine].log_softmax(dim=1).mean(dim=1)
            smoothed = torch.lerp(losses, even, smoothings[trial] if smoothings else 0.0)
            expected = expected + (smoothed * weights[mine]).sum()
        (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    finally:
        embeddings.requires_grad_(False)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()
    plain = torch.nn.functional.cross_entropy(own, batch.targets, reduction="none")
    torch.testing.assert_close(found.losses, plain.detach())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_the_focal_factor_is_the_slope_of_the_focal_loss(gamma: float) -> None:
    losses = torch.tensor([1e-30, 1e-6, 1e-3, 0.1, 1.0, 5.0, 100.0], dtype=torch.float64, requires_grad=True)
    focal = (-torch.expm1(-losses)) ** gamma * losses
    (expected,) = torch.autograd.grad(focal.sum(), losses)
    actual = focal_factor(losses.detach(), torch.full_like(losses, gamma))
    torch.testing.assert_close(actual, expected.detach())


def test_a_target_that_is_certain_has_a_finite_factor() -> None:
    losses = torch.zeros(4)
    factor = focal_factor(losses, torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert factor.isfinite().all()
    assert factor[0] == 1.0
