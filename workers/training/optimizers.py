"""The optimizer of one trial's adapter, over its flat tensor.

All the memory that a step takes is taken when the optimizer is made, so that no step runs out of it half-way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from search_spaces.recipe import Recipe
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


def build_optimizer(
    parameter: torch.nn.Parameter, recipe: Recipe, segments: Sequence[Segment] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over an adapter, its moments made and 0.

    - `adamw`: Loshchilov & Hutter, arXiv 1711.05101.
    - `sgd`: `torch.optim.SGD`, weight decay as an L2 penalty, no dampening. Nesterov's momentum without
      momentum is plain descent (torch refuses the pair). A buffer of zeros gives the first step that
      torch makes without one.
    - `rmsprop`: `torch.optim.RMSprop`, weight decay as an L2 penalty; neither centered nor with momentum.

    Without a head one group, all of it decayed. `transformers.Trainer` makes two groups and spares from
    weight decay what belongs to a LayerNorm or has `bias` or `norm` in its name; an adapter trains `lora_A`
    and `lora_B` weights only (`bias="none"`), none of which is spared, so both groupings are the same. A head
    has segments of its own: it is spared what the Trainer spares, and steps at its own rate.

    Fused where torch has it: on CUDA one kernel steps every matrix, and on CPU it is 3 to 5 times as fast as
    the loop over parameters (AdamW, 64 matrices of 16 x 256 on one thread: 0.5 ms a step against 3.0).

    Args:
        parameter: float32 [P], the adapter's flat tensor.
        recipe: The trial's.
        segments: Of the tensor, in its order; none: it is one.
    """
    parameters, groups = [parameter], [{"params": [parameter], **_options(recipe, Segment(0))}]
    if segments:
        parts = torch.split(parameter.data, [segment.numbers for segment in segments])
        parameters = [torch.nn.Parameter(part) for part in parts]
        groups = [
            {"params": [part], **_options(recipe, segment)}
            for part, segment in zip(parameters, segments, strict=True)
        ]
    optimizer: torch.optim.Optimizer
    match recipe.optimizer:
        case "adamw":
            betas = (recipe.adam_beta1, recipe.adam_beta2)
            optimizer = torch.optim.AdamW(groups, betas=betas, eps=recipe.adam_epsilon, fused=True)
            for part in parameters:
                optimizer.state[part]["step"] = torch.zeros((), device=part.device)
        case "sgd":
            momentum = recipe.sgd_momentum
            nesterov = recipe.sgd_nesterov and momentum > 0
            optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=True)
        case "rmsprop":
            optimizer = SparingRMSprop(groups, alpha=recipe.rmsprop_alpha, eps=RMSPROP_EPSILON)
    for name in moment_names(recipe):
        for part in parameters:
            optimizer.state[part][name] = torch.zeros_like(part, requires_grad=False)
    return optimizer


def _options(recipe: Recipe, segment: Segment) -> dict[str, Any]:
    """A segment's learning rate and decay; the rate's ratio is kept for the later ones."""
    ratio = recipe.head_learning_rate_ratio if segment.is_head else 1.0
    decay = recipe.weight_decay if segment.is_decayed else 0.0
    return {"lr": recipe.peak_learning_rate * ratio, "weight_decay": decay, "ratio": ratio}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of the next step; heads have their ratio of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("ratio", 1.0)


def step(optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    """One step of all segments.

    Args:
        optimizer: From `build_optimizer`.
        gradient: float32 [P].
    """
    parameters = [group["params"][0] for group in optimizer.param_groups]
    parts = torch.split(gradient, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


class SparingRMSprop(torch.optim.RMSprop):
    """RMSprop that takes no memory in a step: torch's own makes two more tensors of the adapter's size.

    The same arithmetic in the same order, so the same bits. A gradient to which the penalty was added stays
    so, which nobody minds: the next pass starts from 0.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        parameters = [parameter for group in groups for parameter in group["params"]]
        largest = max(parameter.numel() for parameter in parameters)
        self._scratch = torch.empty(min(_SCRATCH, largest), device=parameters[0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from `parameter.grad`; there is no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                flat = (parameter, parameter.grad, self.state[parameter]["square_avg"])
                for numbers, gradient, squares in zip(*(one.split(_SCRATCH) for one in flat), strict=True):
                    if group["weight_decay"] != 0:
                        gradient.add_(numbers, alpha=group["weight_decay"])
                    squares.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
                    denominator = torch.sqrt(squares, out=self._scratch[: len(squares)])
                    numbers.addcdiv_(gradient, denominator.add_(group["eps"]), value=-group["lr"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments by name, each float32 [P] over all segments."""
    states = _states(optimizer)
    names = [name for name in states[0] if name != "step"]
    return {
        name: states[0][name] if len(states) == 1 else torch.cat([state[name] for state in states])
        for name in names
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], *, steps: int
) -> None:
    """Goes back to the moments that an optimizer of the same recipe had after so many steps."""
    first = 0
    for group, state in zip(optimizer.param_groups, _states(optimizer), strict=True):
        last = first + group["params"][0].numel()
        for name, tensor in state.items():
            if name == "step":
                tensor.fill_(steps)
            else:
                tensor.copy_(tensors[name][first:last])
        first = last


def _states(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    """What is remembered of each segment, in their order; an optimizer without moments remembers nothing."""
    return [optimizer.state.get(group["params"][0], {}) for group in optimizer.param_groups]
