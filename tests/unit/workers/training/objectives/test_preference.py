"""Losses over pairs against TRL's formulas, and in two steps against autograd through plain logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from workers.base.chunked_loss import target_losses
from workers.training.objectives.preference import PairLosses, bradley_terry, dpo, orpo, row_weights, simpo

seeds = st.integers(0, 10_000)
betas = st.sampled_from([0.01, 0.1, 0.5, 2.0])


def log_probabilities(seed: int, pairs: int = 6) -> tuple[torch.Tensor, ...]:
    """Chosen, rejected, and the reference's, float64 sums over as many tokens; and the tokens of both."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (2, pairs), generator=generator)
    policy = -tokens * 4 * torch.rand(2, pairs, generator=generator, dtype=torch.float64) - 1e-3
    reference = policy + torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    return policy[0], policy[1], reference[0], reference[1], tokens[0], tokens[1]


def trl_dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    beta: float,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`DPOTrainer.dpo_loss`, loss_type="sigmoid": losses, and rewards/margins.

    https://github.com/huggingface/trl/blob/v0.19.1/trl/trainer/dpo_trainer.py
    """
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    losses = -F.logsigmoid(beta * logits) * (1 - label_smoothing)
    losses = losses - F.logsigmoid(-beta * logits) * label_smoothing
    return losses, beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)


def trl_simpo(
    chosen_logps: torch.Tensor, rejected_logps: torch.Tensor, beta: float, gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`CPOTrainer.cpo_loss`, loss_type="simpo", of mean log-probabilities.

    https://github.com/huggingface/trl/blob/v0.19.1/trl/trainer/cpo_trainer.py, which is that of the authors,
    https://github.com/princeton-nlp/SimPO/blob/main/scripts/simpo_trainer.py, with gamma in place of their
    gamma / beta.
    """
    logits = (chosen_logps - rejected_logps) - gamma / beta
    return -F.logsigmoid(beta * logits), beta * chosen_logps - beta * rejected_logps


def trl_orpo(
    chosen_logps: torch.Tensor, rejected_logps: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ORPOTrainer.odds_ratio_loss` of mean log-probabilities, after the chosen answer's own loss; log-odds.

    https://github.com/huggingface/trl/blob/v0.19.1/trl/trainer/orpo_trainer.py
    """
    log_odds = (chosen_logps - rejected_logps) - (
        torch.log1p(-torch.exp(chosen_logps)) - torch.log1p(-torch.exp(rejected_logps))
    )
    return -chosen_logps - beta * F.logsigmoid(log_odds), log_odds


def trl_reward(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`RewardTrainer.compute_loss`.

    https://github.com/huggingface/trl/blob/v0.19.1/trl/trainer/reward_trainer.py
    """
    return -F.logsigmoid(chosen - rejected), chosen - rejected


def assert_same(found: PairLosses, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    for one, other in zip((found.losses, found.margins), expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2e-5, atol=2e-5)


@given(seed=seeds, beta=betas, label_smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_dpo_is_trls(seed: int, beta: float, label_smoothing: float) -> None:
    *values, _, _ = log_probabilities(seed)
    found = dpo(*(value.float() for value in values), beta=beta, label_smoothing=label_smoothing)
    assert_same(found, trl_dpo(*values, beta, label_smoothing))


@given(seed=seeds, beta=betas, gamma=st.sampled_from([0.0, 0.5, 1.4]))
def test_simpo_is_trls(seed: int, beta: float, gamma: float) -> None:
    chosen, rejected, _, _, *tokens = log_probabilities(seed)
    found = simpo(chosen.float(), rejected.float(), *tokens, beta=beta, gamma=gamma)
    assert_same(found, trl_simpo(chosen / tokens[0], rejected / tokens[1], beta, gamma))


@given(seed=seeds, beta=betas)
def test_orpo_is_trls(seed: int, beta: float) -> None:
    chosen, rejected, _, _, *tokens = log_probabilities(seed)
    found = orpo(chosen.float(), rejected.float(), *tokens, beta=beta)
    assert_same(found, trl_orpo(chosen / tokens[0], rejected / tokens[1], beta))


@given(scores=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8))
def test_bradley_terry_is_trls_reward_loss(scores: list[tuple[float, float]]) -> None:
    chosen, rejected = torch.tensor(scores, dtype=torch.float64).T
    assert_same(bradley_terry(chosen.float(), rejected.float()), trl_reward(chosen, rejected))


ONE = torch.ones(1, dtype=torch.int64)


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-6, -1e-3, -1.0, -80.0, -1e4])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-6, -1e-3, -1.0, -80.0, -1e4])
def test_losses_and_slopes_are_finite_from_certain_to_impossible_answers(
    chosen: float, rejected: float
) -> None:
    zero = torch.zeros(1)
    for loss in (
        partial(dpo, reference_chosen=zero, reference_rejected=zero, beta=2.0),
        partial(simpo, chosen_tokens=ONE, rejected_tokens=ONE, beta=2.0, gamma=0.5),
        partial(orpo, chosen_tokens=ONE, rejected_tokens=ONE, beta=2.0),
        bradley_terry,
    ):
        pairs, *slopes = row_weights(loss, torch.tensor([chosen]), torch.tensor([rejected]), torch.ones(1))
        assert torch.cat([pairs.losses, pairs.margins, *slopes]).isfinite().all()
        assert slopes[0].item() <= 0 <= slopes[1].item()


@pytest.mark.parametrize("log_probability", [-1e-6, -1e-5, -1e-3, -0.1, -0.69, -0.7, -3.0, -15.0, -90.0])
def test_log_odds_near_certainty_are_those_of_float64(log_probability: float) -> None:
    one, other = (torch.tensor([value], dtype=torch.float32) for value in (log_probability, -1.5))
    found = orpo(one, other, ONE, ONE, beta=0.1)
    _, expected = trl_orpo(one.double(), other.double(), 0.1)
    torch.testing.assert_close(found.margins, expected.float(), rtol=1e-6, atol=1e-6)
    _, slope, _ = row_weights(
        partial(orpo, chosen_tokens=ONE, rejected_tokens=ONE, beta=0.1), one, other, ONE
    )
    plain = one.double().requires_grad_()
    (expected_slope,) = torch.autograd.grad(trl_orpo(plain, other.double(), 0.1)[0], plain)
    torch.testing.assert_close(slope, expected_slope.float(), rtol=1e-5, atol=1e-6)


def test_a_rejected_answer_that_is_certain_is_still_pushed_down() -> None:
    loss = partial(orpo, chosen_tokens=ONE, rejected_tokens=ONE, beta=0.1)
    _, _, slope = row_weights(loss, torch.tensor([-1.0]), torch.zeros(1), torch.ones(1))
    assert slope.item() > 1e5


@pytest.mark.parametrize("kind", ["dpo", "smoothed dpo", "simpo", "orpo"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 0.0, 2.0]])
def test_the_gradient_of_the_two_steps_is_that_of_autograd_through_the_logits(
    kind: str, weights: list[float]
) -> None:
    generator = torch.Generator().manual_seed(5)
    head = nn.Linear(8, 30, bias=False).requires_grad_(False)
    head.weight.copy_(torch.randn(30, 8, generator=generator))
    tokens = torch.tensor([3, 5, 1, 4, 2, 6])  # chosen and rejected by turns
    row = torch.arange(6).repeat_interleave(tokens)
    hidden = torch.randn(len(row), 8, generator=generator)
    targets = torch.randint(30, (len(row),), generator=generator)
    reference = -20 * torch.rand(2, 3, generator=generator)
    counts = {"chosen_tokens": tokens[::2], "rejected_tokens": tokens[1::2]}
    references = {"reference_chosen": reference[0], "reference_rejected": reference[1]}
    losses: dict[str, Callable[[torch.Tensor, torch.Tensor], PairLosses]] = {
        "dpo": partial(dpo, **references, beta=0.1),
        "smoothed dpo": partial(dpo, **references, beta=0.1, label_smoothing=0.2),
        "simpo": partial(simpo, **counts, beta=2.0, gamma=0.5),
        "orpo": partial(orpo, **counts, beta=0.3),
    }
    loss, pair_weights = losses[kind], torch.tensor(weights)

    def per_row(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(6, dtype=values.dtype).index_add(0, row, values)

    plain = hidden.double().requires_grad_()
    logs = per_row(-F.cross_entropy(head.double()(plain), targets, reduction="none"))
    expected = loss(logs[::2], logs[1::2])
    (expected_gradient,) = torch.autograd.grad((expected.losses * pair_weights).sum(), plain)
    head.float()

    inputs = hidden.clone().requires_grad_()
    logs = per_row(-target_losses(head, inputs, targets, None, chunk_tokens=4).losses)
    pairs, chosen, rejected = row_weights(loss, logs[::2], logs[1::2], pair_weights)
    slopes = torch.stack([chosen, rejected], dim=1).flatten()
    objective = target_losses(head, inputs, targets, -slopes[row], chunk_tokens=4).objective
    assert objective is not None
    objective.backward()

    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, expected_gradient.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pairs.losses, expected.losses.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pairs.margins, expected.margins.float(), rtol=1e-5, atol=1e-5)
    assert pairs.losses.requires_grad is False


def test_a_pair_that_is_not_finite_leaves_the_others_alone() -> None:
    chosen, rejected, *_, chosen_tokens, rejected_tokens = log_probabilities(3)
    loss = partial(orpo, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens, beta=0.1)
    weights = torch.ones(6)
    healthy, *slopes = row_weights(loss, chosen.float(), rejected.float(), weights)
    chosen[2] = float("nan")
    pairs, *found = row_weights(loss, chosen.float(), rejected.float(), weights)
    others = torch.arange(6) != 2
    assert torch.equal(pairs.losses[others], healthy.losses[others])
    assert torch.equal(torch.stack(found)[:, others], torch.stack(slopes)[:, others])
    assert pairs.losses[2].isnan()
    assert found[0][2].isnan()


def test_under_no_grad_there_are_slopes_as_well() -> None:
    with torch.no_grad():
        _, chosen, rejected = row_weights(bradley_terry, torch.zeros(2), torch.zeros(2), torch.ones(2))
    assert (chosen.tolist(), rejected.tolist()) == ([-0.5, -0.5], [0.5, 0.5])
