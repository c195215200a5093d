"""Losses of a study's own, called with what they may see, and checked.

Their gradient with regard to the answers is taken at once and by itself. So whatever a function does is its
own fault and is said with its name, and it cannot reach into the pass that other trials share.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from workers.device.memory import is_device_fault, is_out_of_memory
from workers.errors import LossError, LossNotFiniteError
from workers.plugins import OwnLoss, in_words

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
"""By how much a target's value may differ beside other targets: by rounding, and no more."""


def own_losses(own: OwnLoss, answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each of S targets, float32 [S]; differentiable once, with regard to the answers.

    Args:
        own: The loss.
        answers: float32 [S, C] or [S].
        targets: As in `workers.plugins.TargetLoss`.

    Raises:
        LossError: The function raised, or returned something else than one value for each target.
        LossNotFiniteError: Values or gradient are not finite, though the answers are.
    """
    found = values_and_slopes(own, answers.detach(), targets)
    values: torch.Tensor = _Taken.apply(answers, *found)  # type: ignore[no-untyped-call]
    return values


def values_and_slopes(
    own: OwnLoss, answers: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each target, float32 [S], and its gradient with regard to the target's answers.

    Answers that are not finite give values and a gradient that are not: the function is not asked, because it
    is not its fault.

    Args:
        own: The loss.
        answers: float32 [S, C] or [S], detached.
        targets: As in `workers.plugins.TargetLoss`.

    Raises:
        LossError: As of `own_losses`.
        LossNotFiniteError: Likewise.
    """
    if not bool(answers.isfinite().all()):
        unknown = torch.full_like(answers, math.nan)
        return unknown.view(len(answers), -1)[:, 0].clone(), unknown
    try:
        with torch.autocast(answers.device.type, enabled=False):
            with torch.enable_grad():
                seen = answers.detach().requires_grad_()
                values = _asked(own, seen, targets)
                slopes = _gradient(own, values, seen)
            _require_finite(own, values, slopes)
            _require_independence(own, values, answers, targets)
    except LossError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_device_fault(error):
            raise
        raise LossError(f"The {own} raised {in_words(error)}.") from error
    return values.detach(), slopes


class _Taken(torch.autograd.Function):
    """Values whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, answers: torch.Tensor, values: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slopes)
        return values.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad_values.view(-1, *[1] * (slopes.dim() - 1)), None, None


def _asked(own: OwnLoss, answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What the function returns, if that is one value for each target."""
    returned: object = own.function(answers, targets.clone())  # which it may have changed
    count = len(answers)
    if isinstance(returned, torch.Tensor):
        same = returned.dtype == torch.float32 and returned.device == answers.device
        if same and returned.shape == (count,):
            return returned
        kind = str(returned.dtype).removeprefix("torch.")
        what = f"{kind} {list(returned.shape)} on {returned.device}"
    else:
        what = f"an object of type {type(returned).__name__}"
    wanted = f"float32 [{count}] on {answers.device}"
    raise LossError(f"The {own} returned {what}; it must return one value for each target, {wanted}.")


def _gradient(own: OwnLoss, values: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    slopes = None
    if values.requires_grad:
        (slopes,) = torch.autograd.grad(values.sum(), answers, allow_unused=True)
    if slopes is None:
        raise LossError(
            f"The {own} returned values from which no gradient leads back to the answers; it must be"
            " differentiable with regard to them."
        )
    return slopes


def _require_finite(own: OwnLoss, values: torch.Tensor, slopes: torch.Tensor) -> None:
    for what, numbers in (("value", values.detach()), ("gradient", slopes)):
        faulty = numbers[~numbers.isfinite()]
        if len(faulty):
            example = float(faulty[0])
            raise LossNotFiniteError(
                f"The {own} has a {what} of {example} at answers that are finite; it must be finite too."
            )


def _require_independence(
    own: OwnLoss, values: torch.Tensor, answers: torch.Tensor, targets: torch.Tensor
) -> None:
    """Asks for one target's loss again, beside another number of targets."""
    rows = [0] if len(answers) > 1 else [0, 0]
    with torch.no_grad():
        again = _asked(own, answers[rows], targets[rows])
    one, other = values[0].item(), again[0].item()
    if not math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
        raise LossError(
            f"The {own} gave one target the values {one:.6g} and {other:.6g}, beside other targets; it must"
            " look at each target by itself, because batches are split and trials share passes."
        )
