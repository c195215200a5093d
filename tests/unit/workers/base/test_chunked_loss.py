"""Cross-entropy in chunks: the numbers of the plain one, without its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.workers.live_tensors import LiveTensors
from workers.base.chunked_loss import TargetLosses, chunk_bytes, target_losses

CPU = torch.device("cpu")


class Wrapped(nn.Module):
    """A head that is not plain: its gradient is not a product with one weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(hidden)) * 5


class Passing(nn.Module):
    """A head that returns its own input."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def linear(hidden_size: int, vocabulary: int, *, bias: bool = False, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(hidden_size, vocabulary, bias=bias).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def problem(
    rows: int, hidden_size: int, vocabulary: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, targets and weights, one weight in three of them 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) > 0.3)
    return hidden, targets, weights


def plainly(
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    smoothing: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[TargetLosses, torch.Tensor]:
    """All logits at once and torch's own cross-entropy; the results and the gradient."""
    inputs = hidden.clone().requires_grad_()
    logits = head(inputs).to(dtype)
    losses = F.cross_entropy(logits, targets, reduction="none")
    counted = losses
    if smoothing is not None and len(targets):
        counted = torch.stack(
            [
                F.cross_entropy(row, target, label_smoothing=spread)
                for row, target, spread in zip(logits, targets, smoothing.tolist(), strict=True)
            ]
        )
    objective = (counted * weights).sum()
    (gradient,) = torch.autograd.grad(objective, inputs)
    correct = logits.float().argmax(-1) == targets
    return TargetLosses(losses.detach(), correct, objective.detach()), gradient


def in_chunks(
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    chunk_tokens: int,
    smoothing: torch.Tensor | None = None,
) -> tuple[TargetLosses, torch.Tensor]:
    inputs = hidden.clone().requires_grad_()
    found = target_losses(head, inputs, targets, weights, smoothing=smoothing, chunk_tokens=chunk_tokens)
    assert found.objective is not None
    (gradient,) = torch.autograd.grad(found.objective, inputs)
    return found, gradient


def assert_same(
    found: tuple[TargetLosses, torch.Tensor],
    expected: tuple[TargetLosses, torch.Tensor],
    tolerance: float = 1e-6,
) -> None:
    """Losses, objective, gradient and hits, to a tolerance relative to the largest value or 1."""
    for one, other in [
        (found[0].losses, expected[0].losses),
        (found[0].objective, expected[0].objective),
        (found[1], expected[1]),
    ]:
        assert one is not None
        assert other is not None
        largest = torch.where(other.isfinite(), other.abs(), 1).max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(largest, 1), equal_nan=True)
    assert found[0].losses.requires_grad is False
    assert torch.equal(found[0].correct, expected[0].correct)


shapes = {
    "rows": st.integers(1, 40),
    "hidden_size": st.integers(1, 24),
    "vocabulary": st.integers(1, 60),
    "chunk_tokens": st.integers(1, 50),
    "seed": st.integers(0, 1000),
}


@given(**shapes, bias=st.booleans())
def test_values_and_gradients_are_those_of_plain_cross_entropy(
    rows: int, hidden_size: int, vocabulary: int, chunk_tokens: int, seed: int, bias: bool
) -> None:
    head = linear(hidden_size, vocabulary, bias=bias, seed=seed)
    values = problem(rows, hidden_size, vocabulary, seed)
    assert_same(in_chunks(head, *values, chunk_tokens), plainly(head, *values))


@given(**shapes)
def test_a_head_that_is_not_a_plain_linear_gives_the_same_through_autograd(
    rows: int, hidden_size: int, vocabulary: int, chunk_tokens: int, seed: int
) -> None:
    head = Wrapped(linear(hidden_size, vocabulary, seed=seed))
    values = problem(rows, hidden_size, vocabulary, seed)
    assert_same(in_chunks(head, *values, chunk_tokens), plainly(head, *values))


def mixed_smoothing(rows: int, seed: int = 0) -> torch.Tensor:
    """One in three targets without, the others with amounts of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) > 0.3)


@given(
    **shapes, bias=st.booleans(), plain=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_label_smoothing_is_torchs_with_an_amount_for_each_target(
    rows: int,
    hidden_size: int,
    vocabulary: int,
    chunk_tokens: int,
    seed: int,
    bias: bool,
    plain: bool,
    dtype: torch.dtype,
) -> None:
    head: nn.Module = linear(hidden_size, vocabulary, bias=bias, seed=seed).to(dtype)
    head = head if plain else Wrapped(head)
    hidden, targets, weights = problem(rows, hidden_size, vocabulary, seed)
    values = hidden.to(dtype), targets, weights
    smoothing = mixed_smoothing(rows, seed)
    found, gradient = in_chunks(head, *values, chunk_tokens, smoothing)
    expected, expected_gradient = plainly(head, *values, smoothing, dtype=dtype)
    assert expected.objective is not None
    same = TargetLosses(expected.losses.float(), expected.correct, expected.objective.float())
    assert_same((found, gradient), (same, expected_gradient))


def test_losses_stay_those_of_the_targets_whatever_the_smoothing() -> None:
    head = linear(8, 20)
    values = problem(10, 8, 20)
    plain, _ = in_chunks(head, *values, 4)
    smoothed, _ = in_chunks(head, *values, 4, torch.full((10,), 0.2))
    assert torch.equal(smoothed.losses, plain.losses)
    assert torch.equal(smoothed.correct, plain.correct)
    assert smoothed.objective != plain.objective


@pytest.mark.parametrize("head", [linear(8, 20), Wrapped(linear(8, 20))], ids=["plain", "wrapped"])
def test_a_smoothing_of_zero_changes_no_bit(head: nn.Module) -> None:
    values = problem(10, 8, 20)
    plain, gradient = in_chunks(head, *values, 4)
    smoothed, smoothed_gradient = in_chunks(head, *values, 4, torch.zeros(10))
    assert plain.objective is not None
    assert smoothed.objective is not None
    assert torch.equal(smoothed.objective, plain.objective)
    assert torch.equal(smoothed_gradient, gradient)


def test_an_impossible_token_makes_only_smoothed_losses_infinite() -> None:
    hidden = torch.tensor([[1.0, float("-inf"), 3.0], [2.0, float("-inf"), 0.0]])
    targets, weights = torch.tensor([0, 2]), torch.tensor([0.5, 0.25])
    plain, gradient = in_chunks(Passing(), hidden, targets, weights, 2)
    found, found_gradient = in_chunks(Passing(), hidden, targets, weights, 2, torch.zeros(2))
    assert torch.equal(found_gradient, gradient)
    assert found.objective == plain.objective
    smoothed, _ = in_chunks(Passing(), hidden, targets, weights, 2, torch.tensor([0.1, 0.0]))
    assert smoothed.objective == float("inf")
    assert torch.equal(smoothed.losses, plain.losses)


def hooked() -> nn.Linear:
    head = linear(32, 64)
    head.register_forward_hook(lambda _head, _inputs, output: output * 2)
    return head


def replaced() -> nn.Linear:
    head = linear(32, 64)
    head.forward = lambda hidden: F.linear(hidden, head.weight) * 2  # type: ignore[method-assign]
    return head


def quantized(kind: type[nn.Module], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = kind(32, 64, bias=False, **options)
        layer.load_state_dict(linear(32, 64).state_dict())
        return layer.requires_grad_(False).to(CPU)

    return make


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        replaced,
        quantized(bnb.nn.Linear4bit, compute_dtype=torch.float32),
        quantized(bnb.nn.Linear8bitLt, has_fp16_weights=False),
    ],
    ids=["hook", "forward replaced", "4-bit", "8-bit"],
)
def test_the_gradient_goes_through_what_the_head_really_does(make: Callable[[], nn.Module]) -> None:
    head = make()
    values = problem(20, 32, 64)
    assert_same(in_chunks(head, *values, 7), plainly(head, *values))


def test_an_embedding_tied_to_the_head_gets_no_gradient_and_does_not_move() -> None:
    embedding = nn.Embedding(30, 8)
    head = nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    embedding.weight.requires_grad_(False)
    before = embedding.weight.clone()
    _, targets, weights = problem(9, 8, 30)
    values = embedding(torch.arange(9)), targets, weights
    assert_same(in_chunks(head, *values, 4), plainly(head, *values))
    assert embedding.weight.grad is None
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_numbers_are_autocasts(
    hidden_dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    head = linear(16, 50).to(weight_dtype)
    hidden, targets, weights = problem(23, 16, 50)
    values = hidden.to(hidden_dtype), targets, weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = in_chunks(head, *values, 8), plainly(head, *values)
    assert found[1].dtype == hidden_dtype
    assert found[0].losses.dtype == torch.float32
    assert_same((found[0], expected[1]), expected, 1e-6)
    assert_same(found, expected, 2**-7)


def test_a_bfloat16_model_without_autocast_has_bfloat16_gradients_and_float32_losses() -> None:
    head = linear(16, 50, bias=True).bfloat16()
    hidden, targets, weights = problem(23, 16, 50)
    values = hidden.bfloat16(), targets, weights
    found, expected = in_chunks(head, *values, 8), plainly(head, *values)
    assert (found[1].dtype, found[0].losses.dtype) == (torch.bfloat16, torch.float32)
    assert_same(found, expected, 2**-7)


@pytest.mark.parametrize("head", [linear(8, 20), Wrapped(linear(8, 20))], ids=["plain", "wrapped"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("smoothing", [None, mixed_smoothing(10)], ids=["unsmoothed", "smoothed"])
def test_a_row_that_is_not_finite_stays_alone(
    head: nn.Module, poison: float, smoothing: torch.Tensor | None
) -> None:
    hidden, targets, _ = problem(10, 8, 20)
    weights = torch.linspace(0.1, 1, 10)
    healthy, gradient = in_chunks(head, hidden, targets, weights, 4, smoothing)
    hidden[5, 3] = poison
    found, found_gradient = in_chunks(head, hidden, targets, weights, 4, smoothing)
    expected, _ = plainly(head, hidden, targets, weights)
    others = torch.arange(10) != 5
    assert torch.equal(found.losses[others], healthy.losses[others])
    assert torch.equal(found.correct[others], healthy.correct[others])
    assert torch.equal(found_gradient[others], gradient[others])
    assert found.losses[5].isfinite() == expected.losses[5].isfinite()
    assert isinstance(head, Wrapped) or not found_gradient[5].isfinite().any()


@pytest.mark.parametrize(
    "row",
    [
        [float("inf"), 0.0, 1.0],
        [0.0, float("inf"), 1.0],
        [float("-inf"), 0.0, 1.0],
        [float("-inf"), float("-inf"), 0.0],
        [float("-inf")] * 3,
        [float("nan"), 0.0, 1.0],
        [3e38, -3e38, 0.0],
        [1e4, 0.0, -1e4],
    ],
)
def test_extreme_logits_give_what_cross_entropy_gives(row: list[float]) -> None:
    hidden = torch.tensor([[1.0, 2.0, 3.0], row])
    values = hidden, torch.tensor([2, 0]), torch.tensor([0.5, 0.25])
    assert_same(in_chunks(Passing(), *values, 2), plainly(Passing(), *values))


def test_a_head_that_returns_its_input_leaves_it_unchanged() -> None:
    hidden, targets, weights = problem(6, 5, 5)
    before = hidden.clone()
    target_losses(Passing(), hidden, targets, None, chunk_tokens=4)
    target_losses(Passing(), hidden.requires_grad_(), targets, weights, chunk_tokens=4)
    assert torch.equal(hidden, before)


@given(**shapes, plain=st.booleans())
def test_without_weights_there_are_the_same_losses_and_no_gradient(
    rows: int, hidden_size: int, vocabulary: int, chunk_tokens: int, seed: int, plain: bool
) -> None:
    head: nn.Module = linear(hidden_size, vocabulary, seed=seed)
    head = head if plain else Wrapped(head)
    hidden, targets, weights = problem(rows, hidden_size, vocabulary, seed)
    expected, _ = in_chunks(head, hidden, targets, weights, chunk_tokens)
    found = target_losses(head, hidden.requires_grad_(), targets, None, chunk_tokens=chunk_tokens)
    assert found.objective is None
    assert found.losses.requires_grad is False
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.correct, expected.correct)


def test_the_gradient_follows_what_the_objective_is_multiplied_with() -> None:
    head = linear(8, 20)
    hidden, targets, weights = problem(10, 8, 20)
    _, gradient = plainly(head, hidden, targets, weights)
    inputs = hidden.clone().requires_grad_()
    objective = target_losses(head, inputs, targets, weights, chunk_tokens=3).objective
    assert objective is not None
    (objective * 3 + 1).backward()
    torch.testing.assert_close(inputs.grad, gradient * 3, rtol=1e-5, atol=1e-6)


def test_no_targets_give_an_objective_of_zero() -> None:
    found, gradient = in_chunks(linear(8, 20), *problem(0, 8, 20), 4)
    assert found.objective is not None
    assert (found.objective.item(), found.losses.shape, gradient.shape) == (0.0, (0,), (0, 8))


@contextlib.contextmanager
def watched() -> Iterator[LiveTensors]:
    with LiveTensors() as live:
        yield live


class Another(nn.Linear):
    """Linear, but nothing that one may rely on."""


ROWS, HIDDEN, VOCABULARY, CHUNK = 256, 4, 4000, 16
SMALL = 5 * 4 * ROWS * HIDDEN
"""Room for gradients, losses and the like: a third of a byte for each logit of a chunk."""


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "training", "bytes_per_logit"),
    [
        (nn.Linear, torch.float32, True, 4),
        (nn.Linear, torch.float32, False, 4),
        (nn.Linear, torch.bfloat16, True, 6),
        (nn.Linear, torch.bfloat16, False, 6),
        (Another, torch.float32, True, 8),
        (Another, torch.float32, False, 8),
        (Another, torch.bfloat16, True, 8),
        (Another, torch.bfloat16, False, 6),
    ],
)
def test_logits_are_never_held_whole_and_take_what_is_documented(
    kind: type[nn.Linear], dtype: torch.dtype, training: bool, bytes_per_logit: int, smoothed: bool
) -> None:
    head = kind(HIDDEN, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    hidden, targets, weights = problem(ROWS, HIDDEN, VOCABULARY)
    hidden = hidden.to(dtype).requires_grad_()
    with watched() as live:
        found = target_losses(
            head,
            hidden,
            targets,
            weights if training else None,
            smoothing=mixed_smoothing(ROWS) if smoothed else None,
            chunk_tokens=CHUNK,
        )
        if found.objective is not None:
            found.objective.backward()
    assert live.largest <= 4 * CHUNK * VOCABULARY
    assert live.peak <= bytes_per_logit * CHUNK * VOCABULARY + SMALL
    assert live.peak <= chunk_bytes(CHUNK, VOCABULARY) + SMALL


def test_the_watch_sees_the_logits_of_plain_cross_entropy() -> None:
    values = problem(ROWS, HIDDEN, VOCABULARY)
    with watched() as live:
        plainly(linear(HIDDEN, VOCABULARY), *values)
    assert live.largest >= 4 * ROWS * VOCABULARY
    assert live.peak >= 3 * 4 * ROWS * VOCABULARY
