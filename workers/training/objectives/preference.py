"""Losses over pairs of a chosen and a rejected answer. Pure.

A row's log-probability is the sum of its supervised tokens' log-probabilities, in nats: what
`chunked_loss.target_losses` gives, negated and summed.

The chunked loss has no gradient of its own to give to a function of its losses: it must know what each
target counts before it makes logits. So a pass takes two steps, on the same hidden states:

1. `target_losses(head, hidden, targets, None)`: the log-probabilities, without a gradient;
2. `row_weights` of them, and `target_losses(head, hidden, targets, weights)` where each target's weight is
   the slope of its row, negated, as a loss is a negative log-probability.

The gradient of the second step's objective is that of the pairs' losses: by the chain rule, a row's slope
is all that the objective knows of the row's tokens. The objective's own value is not the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_SMALLEST_LOSS = torch.finfo(torch.float32).eps
"""The mean loss of a token, in nats, below which float32 cannot tell a probability from 1."""


@dataclass(frozen=True, eq=False)
class PairLosses:
    """What is known of N pairs."""

    losses: torch.Tensor
    """float32 [N], in nats."""
    margins: torch.Tensor
    """float32 [N]: by how much the chosen answer's reward is above the rejected one's; detached."""


def dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> PairLosses:
    """Direct preference optimization: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.

    -log(sigmoid(margin)), with margin = beta * (log-ratio of the chosen answer to the reference - that of
    the rejected one). With label smoothing, the chance that a pair is the wrong way round, it is the
    conservative DPO of Mitchell (https://ericmitchell.ai/cdpo.pdf): TRL's "sigmoid" loss.

    Args:
        chosen: float32 [N], log-probabilities of the chosen answers.
        rejected: float32 [N], of the rejected ones.
        reference_chosen: float32 [N], what the model without an adapter gives the chosen answers.
        reference_rejected: float32 [N], and the rejected ones.
        beta: More than 0; the larger, the more it costs to leave the reference.
        label_smoothing: From 0 to 0.5.
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    losses = -(F.logsigmoid(margins) * (1 - label_smoothing) + F.logsigmoid(-margins) * label_smoothing)
    return PairLosses(losses, margins.detach())


def simpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
    gamma: float,
) -> PairLosses:
    """SimPO: Meng et al. 2024 (arXiv 2405.14734), equation 6.

    -log(sigmoid(margin - gamma)), with margin = beta * (mean log-probability of the chosen answer's tokens
    - that of the rejected one's). TRL's CPOTrainer with `loss_type="simpo"` and `cpo_alpha=0`.

    Args:
        chosen: float32 [N], log-probabilities of the chosen answers.
        rejected: float32 [N], of the rejected ones.
        chosen_tokens: [N], the supervised tokens of the chosen answers, at least 1.
        rejected_tokens: [N], of the rejected ones.
        beta: More than 0. The paper's are 2 to 10.
        gamma: The margin aimed at, at least 0.
    """
    margins = beta * (chosen / chosen_tokens - rejected / rejected_tokens)
    return PairLosses(-F.logsigmoid(margins - gamma), margins.detach())


def orpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    *,
    beta: float,
) -> PairLosses:
    """Odds ratio preference optimization: Hong et al. 2024 (arXiv 2403.07691), equations 6 and 7.

    The chosen answer's mean loss of a token - beta * log(sigmoid(margin)), with margin = log-odds of the
    chosen answer - those of the rejected one, where an answer's probability is the geometric mean of its
    tokens'. TRL's ORPOTrainer takes the first part over the tokens of the prompt, too, and in a batch over
    all tokens alike; the paper, and this, over those of each answer.

    A probability that float32 cannot tell from 1 counts as the largest that it can.

    Args:
        chosen: float32 [N], log-probabilities of the chosen answers.
        rejected: float32 [N], of the rejected ones.
        chosen_tokens: [N], the supervised tokens of the chosen answers, at least 1.
        rejected_tokens: [N], of the rejected ones.
        beta: What the odds count beside the chosen answer's loss; the paper's lambda.
    """
    mean_chosen = chosen / chosen_tokens
    margins = _log_odds(mean_chosen) - _log_odds(rejected / rejected_tokens)
    return PairLosses(-mean_chosen - beta * F.logsigmoid(margins), margins.detach())


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor) -> PairLosses:
    """The loss of a reward model: -log(sigmoid(margin)), with margin = score of chosen - of rejected.

    Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), equation 1; TRL's RewardTrainer.

    Args:
        chosen: float32 [N], scores of the chosen answers.
        rejected: float32 [N], of the rejected ones.
    """
    margins = chosen - rejected
    return PairLosses(-F.logsigmoid(margins), margins.detach())


def row_weights(
    pair_losses: Callable[[torch.Tensor, torch.Tensor], PairLosses],
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[PairLosses, torch.Tensor, torch.Tensor]:
    """The derivative of sum(weights * losses) with regard to each row's log-probability.

    Args:
        pair_losses: From the two log-probabilities of each pair, such as a `partial` of `dpo`.
        chosen: float32 [N], log-probabilities of the chosen answers.
        rejected: float32 [N], of the rejected ones.
        weights: float32 [N], what each pair's loss counts.

    Returns:
        The pairs' losses, detached; and float32 [N] each, the slopes of the chosen and the rejected rows.
    """
    with torch.enable_grad():
        rows = chosen.detach().requires_grad_(), rejected.detach().requires_grad_()
        pairs = pair_losses(*rows)
        chosen_slopes, rejected_slopes = torch.autograd.grad(pairs.losses, rows, weights)
    return PairLosses(pairs.losses.detach(), pairs.margins), chosen_slopes, rejected_slopes


def _log_odds(logs: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log-probabilities.

    Where p is 1 but for rounding, the value and the slope are those of the largest p below 1. The slope is
    not 0 there, because a rejected answer of probability 1 has the farthest to go.
    """
    logs = logs + (logs.clamp(max=-_SMALLEST_LOSS) - logs).detach()
    return logs - torch.log(-torch.expm1(logs))
