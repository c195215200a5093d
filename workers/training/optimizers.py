"""The optimizers of adapters, over their flat tensors, and the step that several of them take together.

All the memory that a step takes is taken when an optimizer is made, so that no step runs out of it half-way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from search_spaces.recipe import Recipe
from workers.device.memory import is_device_fault
from workers.lora.adapters import Segment

RMSPROP_EPSILON = 1e-8
"""Added to RMSprop's denominator: the default of `torch.optim.RMSprop`."""

_SCRATCH = 2**20
"""Numbers that RMSprop steps at a time: few kernels for any adapter, and 4 MiB."""


def moment_names(recipe: Recipe) -> tuple[str, ...]:
    """What the recipe's optimizer remembers of each number, each as large as the adapter, in float32."""
    match recipe.optimizer:
        case "adamw":
            return ("exp_avg", "exp_avg_sq")
        case "sgd":
            return ("momentum_buffer",) if recipe.sgd_momentum > 0 else ()
        case "rmsprop":
            return ("square_avg",)


def adapter_bytes(parameters: int, recipe: Recipe, *, accumulates: bool) -> int:
    """What a trial keeps on the device, in float32: weights, gradient and moments of 4 bytes a parameter.

    Args:
        parameters: Trainable ones, of its adapter.
        recipe: Its optimizer remembers 2 numbers of each parameter (AdamW), 1 (RMSprop, SGD with momentum) or
            none.
        accumulates: Whether a batch may span passes, as any of several rows may: a second gradient buffer.
    """
    return 4 * parameters * (2 + len(moment_names(recipe)) + accumulates)


@dataclass(frozen=True)
class _Part:
    """A segment's own parts of an adapter's flat tensors, and how it steps."""

    recipe: Recipe
    weights: torch.Tensor
    gradient: torch.Tensor
    moments: tuple[torch.Tensor, ...]
    """In the order of `moment_names`."""
    steps: torch.Tensor
    """float32 []: taken so far. Only AdamW counts them."""
    rate_ratio: float
    """Of the adapter's learning rate."""
    decay: float
    scratch: torch.Tensor
    """float32 [at most `_SCRATCH`], for RMSprop."""


class AdapterOptimizer:
    """The recipe's optimizer over an adapter.

    - `adamw`: Loshchilov & Hutter, arXiv 1711.05101.
    - `sgd`: `torch.optim.SGD`, weight decay as an L2 penalty, no dampening. Nesterov's momentum without
      momentum is plain descent (torch refuses the pair). A buffer of zeros gives the first step that
      torch makes without one.
    - `rmsprop`: `torch.optim.RMSprop`, weight decay as an L2 penalty; neither centered nor with momentum.

    Without a head all of the adapter is decayed. `transformers.Trainer` makes two groups and spares from
    weight decay what belongs to a LayerNorm or has `bias` or `norm` in its name; an adapter trains `lora_A`
    and `lora_B` weights only (`bias="none"`), none of which is spared, so both groupings are the same. A head
    has segments of its own: it is spared what the Trainer spares, and steps at its own rate.

    Attributes:
        recipe: The trial's.
        gradient: float32 [P], which steps are taken from.
        moments: By `moment_names`, float32 [P], 0 at first.
        parts: Of each segment.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        recipe: Recipe,
        segments: Sequence[Segment] = (),
    ) -> None:
        """
        Args:
            weights: float32 [P], the adapter's flat tensor, which steps change.
            gradient: float32 [P]
            recipe: The trial's.
            segments: Of the tensors, in their order; none: they are one.
        """
        self.recipe = recipe
        self.gradient = gradient
        self.moments = {name: torch.zeros_like(gradient) for name in moment_names(recipe)}
        largest = min(_SCRATCH, len(gradient)) if recipe.optimizer == "rmsprop" else 0
        scratch = torch.empty(largest, device=gradient.device)
        segments = segments or (Segment(len(gradient)),)
        ends = list(accumulate(segment.numbers for segment in segments))
        self.parts = [
            _Part(
                recipe,
                weights[first:end],
                gradient[first:end],
                tuple(moment[first:end] for moment in self.moments.values()),
                torch.zeros((), device=gradient.device),
                recipe.head_learning_rate_ratio if segment.is_head else 1.0,
                recipe.weight_decay if segment.is_decayed else 0.0,
                scratch,
            )
            for segment, first, end in zip(segments, [0, *ends[:-1]], ends, strict=True)
        ]

    def restore(self, tensors: Mapping[str, torch.Tensor], *, steps: int) -> None:
        """Goes back to the moments that an optimizer of the same recipe had after so many steps."""
        for name, moment in self.moments.items():
            moment.copy_(tensors[name])
        for part in self.parts:
            part.steps.fill_(steps)


@dataclass(frozen=True)
class Step:
    """A step that a trial is ready for."""

    optimizer: AdapterOptimizer
    learning_rate: float
    factor: float = 1.0
    """What the gradient is multiplied with before: of clipping and of the loss scale."""


@torch.no_grad()
def take_steps(steps: Sequence[Step]) -> list[Exception | None]:
    """One step of each of several trials, together.

    One call clips all gradients, and one call of torch's fused kernel steps all parts of the same rate, decay
    and constants, none of which changes a bit of another. Different rates in one call would take elementwise
    kernels over the rows of a bank (`docs/decisions/0031-banks-of-slots.md`).

    Returns:
        Of each, what broke its step, after which its weights are unknown; None: it is taken.

    Raises:
        torch.AcceleratorError: The device is unusable.
    """
    clipped = [step for step in steps if step.factor != 1.0]
    if clipped:
        torch._foreach_mul_([step.optimizer.gradient for step in clipped], [step.factor for step in clipped])
    alike: dict[tuple[float, float, str, tuple[float, ...]], list[tuple[int, _Part]]] = {}
    for number, step in enumerate(steps):
        for part in step.optimizer.parts:
            rate = step.learning_rate * part.rate_ratio
            key = (rate, part.decay, part.recipe.optimizer, _constants(part.recipe))
            alike.setdefault(key, []).append((number, part))
    errors: list[Exception | None] = [None] * len(steps)
    for (rate, *_), members in alike.items():
        try:
            _step(rate, [part for _, part in members])
        except Exception as error:
            if is_device_fault(error):
                raise
            for number, _ in members:
                errors[number] = error
    return errors


def _constants(recipe: Recipe) -> tuple[float, ...]:
    """What a kernel is given beside the rate and the decay."""
    match recipe.optimizer:
        case "adamw":
            return recipe.adam_beta1, recipe.adam_beta2, recipe.adam_epsilon
        case "sgd":
            return recipe.sgd_momentum, float(recipe.sgd_nesterov)
        case "rmsprop":
            return (recipe.rmsprop_alpha,)


def _step(rate: float, parts: Sequence[_Part]) -> None:
    """One step of parts with the same constants and decay."""
    recipe, decay = parts[0].recipe, parts[0].decay
    weights, gradients = [part.weights for part in parts], [part.gradient for part in parts]
    match recipe.optimizer:
        case "adamw":
            beta1, beta2, epsilon = _constants(recipe)
            adamw(
                weights,
                gradients,
                [part.moments[0] for part in parts],
                [part.moments[1] for part in parts],
                [],
                [part.steps for part in parts],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=decay,
                eps=epsilon,
                maximize=False,
            )
        case "sgd":
            momentum = recipe.sgd_momentum
            sgd(
                weights,
                gradients,
                [part.moments[0] if part.moments else None for part in parts],
                fused=True,
                weight_decay=decay,
                momentum=momentum,
                lr=rate,
                dampening=0.0,
                nesterov=recipe.sgd_nesterov and momentum > 0,
                maximize=False,
            )
        case "rmsprop":
            for part in parts:
                _rmsprop(part, rate)


def _rmsprop(part: _Part, rate: float) -> None:
    """Takes no memory in a step: torch's own makes two more tensors of the adapter's size.

    The same arithmetic in the same order, so the same bits. A gradient to which the penalty was added stays
    so, which nobody minds: the next pass starts from 0.
    """
    alpha = part.recipe.rmsprop_alpha
    flat = (part.weights, part.gradient, part.moments[0])
    for numbers, gradient, squares in zip(*(torch.split(one, _SCRATCH) for one in flat), strict=True):
        if part.decay != 0:
            gradient.add_(numbers, alpha=part.decay)
        squares.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        denominator = torch.sqrt(squares, out=part.scratch[: len(squares)])
        numbers.addcdiv_(gradient, denominator.add_(RMSPROP_EPSILON), value=-rate)
