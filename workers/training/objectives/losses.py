"""The losses of classes and scores: one value for each target, which the caller weights and sums. Pure.

A step's loss is the sum of its targets' losses over the number of targets, with class weights as well.
Torch's own mean divides by the sum of the weights of the targets at hand instead. Such a mean depends on
which targets share a micro-batch, so that it is another one under gradient accumulation, and of a single
target it has no weight at all.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

ClassLoss = Literal["cross_entropy", "focal"]
RegressionLoss = Literal["mse", "huber"]


def class_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    loss: ClassLoss = "cross_entropy",
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of each of S targets over C classes, in nats; differentiable with regard to the logits.

    One class of C (int64 targets): the sum over the classes of q * weight * (1 - p)^gamma * -log(p), where
    p is the softmax and q the target's distribution: 1 - smoothing + smoothing / C for the target and
    smoothing / C for the others. Without focal loss gamma is 0, and the numbers are those of
    `torch.nn.functional.cross_entropy` with `weight`, `label_smoothing` and `reduction="none"`.

    Any number of C labels (float targets): each label is a choice between two classes, with p the sigmoid
    and q = target * (1 - smoothing) + smoothing / 2. The same sum over both, times the label's weight, is
    averaged over the C labels; without focal loss, that is `binary_cross_entropy_with_logits` with `weight`.

    Focal loss is that of Lin et al. 2017 (arXiv 1708.02002), equation 4; its alpha is the class weight.

    Args:
        logits: [S, C] in any floating dtype; computed in float32.
        targets: int64 [S], classes; or float32 [S, C], 1 for each label that applies and 0 for the others.
        loss: Focal loss counts a target less, the surer it is.
        focal_gamma: Its exponent, at least 0.
        label_smoothing: From 0 to 1.
        class_weights: float32 [C]; None: 1 for all.

    Returns:
        float32 [S].
    """
    logits = logits.float()
    gamma = focal_gamma if loss == "focal" else 0.0
    if targets.is_floating_point():
        wanted = torch.lerp(targets, torch.full_like(targets, 0.5), label_smoothing)
        terms = _focused(logits, gamma) * wanted + _focused(-logits, gamma) * (1 - wanted)
        return (terms if class_weights is None else terms * class_weights).mean(dim=1)
    if gamma == 0:
        return F.cross_entropy(
            logits, targets, class_weights, reduction="none", label_smoothing=label_smoothing
        )
    logs = logits.log_softmax(dim=1)
    # Not 0, where the slope of a root is infinite: (1 - p)^0.5 is one.
    rest = (-logs.expm1()).clamp(min=torch.finfo(logs.dtype).tiny)
    terms = -logs * rest**gamma
    if class_weights is not None:
        terms = terms * class_weights
    on_target = terms.gather(1, targets.unsqueeze(1)).squeeze(1)
    return on_target.lerp(terms.mean(dim=1), label_smoothing)


def _focused(logits: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 - p)^gamma * -log(p) with p the sigmoid."""
    losses = -F.logsigmoid(logits)
    return losses if gamma == 0 else losses * (gamma * F.logsigmoid(-logits)).exp()


def balanced_weights(counts: torch.Tensor) -> torch.Tensor:
    """Weights with which all classes count alike: targets / (classes * targets of the class).

    Scikit-learn's `class_weight="balanced"`. A class without targets is not counted among the classes and
    gets 1; of targets with several labels, each label counts as one.

    Args:
        counts: int64 [C], how many targets each class has; one at least is positive.

    Returns:
        float32 [C].
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.double())
    return weights.where(present, 1.0).float()


def regression_losses(
    scores: torch.Tensor, targets: torch.Tensor, *, loss: RegressionLoss = "mse", huber_delta: float = 1.0
) -> torch.Tensor:
    """The loss of each of S scores; differentiable with regard to the scores.

    `mse`: the squared error. `huber` (Huber 1964): half of it up to an absolute error of delta, and
    delta * (|error| - delta / 2) beyond, as `torch.nn.functional.huber_loss`.

    Args:
        scores: [S] in any floating dtype; computed in float32.
        targets: float32 [S].
        loss: Which.
        huber_delta: In the unit of the scores, more than 0.

    Returns:
        float32 [S], in the scores' unit squared.
    """
    scores = scores.float()
    if loss == "huber":
        return F.huber_loss(scores, targets, reduction="none", delta=huber_delta)
    return F.mse_loss(scores, targets, reduction="none")
