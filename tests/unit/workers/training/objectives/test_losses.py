"""The losses of classes and scores against torch's, and against their definitions written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from workers.training.objectives.losses import balanced_weights, class_losses, regression_losses

shapes = {"rows": st.integers(1, 12), "classes": st.integers(2, 9), "seed": st.integers(0, 10_000)}
options: dict[str, Any] = {
    "focal_gamma": st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    "label_smoothing": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "weighted": st.booleans(),
}


def problem(
    rows: int, classes: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, classes, labels of which any number applies, and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    one = torch.randint(classes, (rows,), generator=generator)
    several = torch.randint(2, (rows, classes), generator=generator).float()
    return logits, one, several, torch.rand(classes, generator=generator) * 4


@given(**shapes, label_smoothing=options["label_smoothing"], weighted=options["weighted"])
def test_cross_entropy_is_torchs(
    rows: int, classes: int, seed: int, label_smoothing: float, weighted: bool
) -> None:
    logits, targets, _, weights = problem(rows, classes, seed)
    found = class_losses(
        logits, targets, label_smoothing=label_smoothing, class_weights=weights if weighted else None
    )
    expected = F.cross_entropy(
        logits,
        targets,
        weights if weighted else None,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    torch.testing.assert_close(found, expected)


@given(**shapes, weighted=options["weighted"])
def test_of_several_labels_the_loss_is_torchs_binary_cross_entropy(
    rows: int, classes: int, seed: int, weighted: bool
) -> None:
    logits, _, targets, weights = problem(rows, classes, seed)
    found = class_losses(logits, targets, class_weights=weights if weighted else None)
    expected = F.binary_cross_entropy_with_logits(
        logits, targets, weights if weighted else None, reduction="none"
    ).mean(dim=1)
    torch.testing.assert_close(found, expected)


@given(**shapes, label_smoothing=options["label_smoothing"])
def test_a_smoothed_label_is_a_smoothed_choice_between_two_classes(
    rows: int, classes: int, seed: int, label_smoothing: float
) -> None:
    logits, _, targets, _ = problem(rows, classes, seed)
    found = class_losses(logits, targets, label_smoothing=label_smoothing)
    two = torch.stack([torch.zeros_like(logits), logits], dim=2).flatten(0, 1)
    expected = F.cross_entropy(
        two, targets.long().flatten(), label_smoothing=label_smoothing, reduction="none"
    )
    torch.testing.assert_close(found, expected.view(rows, classes).mean(dim=1))


def focal(p: float, gamma: float) -> float:
    """Equation 4 of arXiv 1708.02002."""
    return -((1 - p) ** gamma) * math.log(p)


@given(**shapes, **options)
def test_focal_loss_is_the_papers_over_the_targets_distribution(
    rows: int, classes: int, seed: int, focal_gamma: float, label_smoothing: float, weighted: bool
) -> None:
    logits, targets, _, weights = problem(rows, classes, seed)
    weights = weights if weighted else torch.ones(classes)
    found = class_losses(
        logits,
        targets,
        loss="focal",
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
        class_weights=weights if weighted else None,
    )
    even = label_smoothing / classes
    expected = [
        sum(
            (even + (1 - label_smoothing) * (c == target)) * weight * focal(p, focal_gamma)
            for c, (p, weight) in enumerate(zip(row, weights.tolist(), strict=True))
        )
        for row, target in zip(logits.double().softmax(1).tolist(), targets.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(**shapes, **options)
def test_focal_loss_of_several_labels_is_the_papers_for_each(
    rows: int, classes: int, seed: int, focal_gamma: float, label_smoothing: float, weighted: bool
) -> None:
    logits, _, targets, weights = problem(rows, classes, seed)
    weights = weights if weighted else torch.ones(classes)
    found = class_losses(
        logits,
        targets,
        loss="focal",
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
        class_weights=weights if weighted else None,
    )
    wanted = targets.double() * (1 - label_smoothing) + label_smoothing / 2
    expected = [
        sum(
            weight * (q * focal(p, focal_gamma) + (1 - q) * focal(1 - p, focal_gamma))
            for p, q, weight in zip(row, wishes, weights.tolist(), strict=True)
        )
        / classes
        for row, wishes in zip(logits.double().sigmoid().tolist(), wanted.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("several", [False, True])
def test_a_certain_target_has_a_focal_loss_and_a_slope_that_are_finite(gamma: float, several: bool) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) if several else torch.tensor([0, 0])
    losses = class_losses(logits, targets, loss="focal", focal_gamma=gamma)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 200.0 if several else 400.0])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("several", [False, True])
def test_the_mean_over_targets_is_the_same_in_whatever_micro_batches(loss: Any, several: bool) -> None:
    logits, one, some, weights = problem(12, 5, 0)
    targets = some if several else one
    given_options: dict[str, Any] = {"loss": loss, "label_smoothing": 0.1, "class_weights": weights}
    whole = class_losses(logits, targets, **given_options).sum() / 12
    parts = [class_losses(logits[i : i + 1], targets[i : i + 1], **given_options) for i in range(12)]
    torch.testing.assert_close(torch.cat(parts).sum() / 12, whole)
    assert not torch.allclose(parts[0], class_losses(logits[:1], targets[:1], loss=loss, label_smoothing=0.1))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("several", [False, True])
def test_a_row_that_is_not_finite_leaves_the_others_alone(loss: Any, several: bool) -> None:
    logits, one, some, _ = problem(6, 4, 1)
    targets = some if several else one
    healthy = class_losses(logits, targets, loss=loss, label_smoothing=0.1)
    poisoned = logits.clone()
    poisoned[2, 1] = float("nan")
    poisoned.requires_grad_()
    losses = class_losses(poisoned, targets, loss=loss, label_smoothing=0.1)
    losses.sum().backward()
    others = torch.arange(6) != 2
    assert torch.equal(losses[others], healthy[others])
    assert losses[2].isnan()
    assert poisoned.grad is not None
    assert poisoned.grad[others].isfinite().all()


def test_half_precision_logits_give_float32_losses() -> None:
    logits, targets, several, _ = problem(5, 3, 2)
    for wanted in (targets, several):
        for loss in ("cross_entropy", "focal"):
            losses = class_losses(logits.bfloat16(), wanted, loss=loss)  # type: ignore[arg-type]
            assert losses.dtype == torch.float32
            torch.testing.assert_close(losses, class_losses(logits.bfloat16().float(), wanted, loss=loss))  # type: ignore[arg-type]


@given(targets=st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_balanced_weights_are_scikit_learns(targets: list[int]) -> None:
    counts = torch.bincount(torch.tensor(targets), minlength=7)
    present = np.unique(targets)
    found = balanced_weights(counts)
    expected = compute_class_weight("balanced", classes=present, y=np.array(targets))
    assert found[present].tolist() == pytest.approx(expected.tolist())
    assert found[counts == 0].tolist() == [1.0] * (7 - len(present))


@given(
    pairs=st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=9),
    delta=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_regression_losses_are_their_definitions(pairs: list[tuple[float, float]], delta: float) -> None:
    scores, targets = torch.tensor(pairs).T
    errors = (scores.double() - targets.double()).abs().tolist()
    assert regression_losses(scores, targets).tolist() == pytest.approx([e * e for e in errors], rel=1e-4)
    expected = [e * e / 2 if e <= delta else delta * (e - delta / 2) for e in errors]
    found = regression_losses(scores, targets, loss="huber", huber_delta=delta)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9)
