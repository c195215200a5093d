"""The optimizer of one trial's adapter, over its flat tensor.

All the memory that a step takes is taken when the optimizer is made, so that no step runs out of it half-way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from search_spaces.recipe import Recipe

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


def build_optimizer(parameter: torch.nn.Parameter, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over an adapter's LoRA matrices, its moments made and 0.

    - `adamw`: Loshchilov & Hutter, arXiv 1711.05101.
    - `sgd`: `torch.optim.SGD`, weight decay as an L2 penalty, no dampening. Nesterov's momentum without
      momentum is plain descent (torch refuses the pair). A buffer of zeros gives the first step that
      torch makes without one.
    - `rmsprop`: `torch.optim.RMSprop`, weight decay as an L2 penalty; neither centered nor with momentum.

    One group, all of it decayed. `transformers.Trainer` makes two groups and spares from weight decay
    what belongs to a LayerNorm or has `bias` or `norm` in its name; an adapter trains `lora_A` and
    `lora_B` weights only (`bias="none"`), none of which is spared, so both groupings are the same.

    Fused where torch has it: on CUDA one kernel steps every matrix, and on CPU it is 3 to 5 times as fast as
    the loop over parameters (AdamW, 64 matrices of 16 x 256 on one thread: 0.5 ms a step against 3.0).

    Args:
        parameter: float32 [P], the adapter's flat tensor.
        recipe: The trial's.
    """
    common: dict[str, Any] = {"lr": recipe.peak_learning_rate, "weight_decay": recipe.weight_decay}
    optimizer: torch.optim.Optimizer
    match recipe.optimizer:
        case "adamw":
            betas = (recipe.adam_beta1, recipe.adam_beta2)
            optimizer = torch.optim.AdamW(
                [parameter], betas=betas, eps=recipe.adam_epsilon, fused=True, **common
            )
            optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        case "sgd":
            momentum = recipe.sgd_momentum
            nesterov = recipe.sgd_nesterov and momentum > 0
            optimizer = torch.optim.SGD(
                [parameter], momentum=momentum, nesterov=nesterov, fused=True, **common
            )
        case "rmsprop":
            optimizer = SparingRMSprop([parameter], alpha=recipe.rmsprop_alpha, eps=RMSPROP_EPSILON, **common)
    for name in moment_names(recipe):
        optimizer.state[parameter][name] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


class SparingRMSprop(torch.optim.RMSprop):
    """RMSprop that takes no memory in a step: torch's own makes two more tensors of the adapter's size.

    The same arithmetic in the same order, so the same bits. A gradient to which the penalty was added stays
    so, which nobody minds: the next pass starts from 0.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], **options: Any) -> None:
        super().__init__(parameters, **options)
        self._scratch = torch.empty(min(_SCRATCH, parameters[0].numel()), device=parameters[0].device)

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


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of the next step in all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The moments themselves, by name."""
    (state,) = optimizer.state.values() or [{}]
    return {name: tensor for name, tensor in state.items() if name != "step"}


def restore_moments(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], *, steps: int
) -> None:
    """Goes back to the moments that an optimizer of the same recipe had after so many steps."""
    for state in optimizer.state.values():
        for name, tensor in state.items():
            if name == "step":
                tensor.fill_(steps)
            else:
                tensor.copy_(tensors[name])
