"""The LoRA product of a layer in its two forms, forwards and backwards: see `workers.lora.multi_lora`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workers.lora.multi_lora_pass import MultiLoraPass


class MultiLoraProduct(torch.autograd.Function):
    """base + LoRA. The matrices are no inputs: their gradients are added where the adapters keep them."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        base: torch.Tensor,
        lora_pass: MultiLoraPass,
        layer: int,
    ) -> torch.Tensor:
        keep = lora_pass.keep(layer, x)
        dropped = x.to(lora_pass.dtype) if keep is None else x.to(lora_pass.dtype) * keep
        ctx.lora_pass, ctx.layer, ctx.dtypes = lora_pass, layer, (x.dtype, base.dtype)
        if lora_pass.form == "looped":
            output, z = _looped_forward(lora_pass, layer, dropped, base)
        else:
            output, z = _stacked_forward(lora_pass, layer, dropped, base)
        ctx.save_for_backward(dropped, *z)  # the mask is cheaper to make again than to keep
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, *z = ctx.saved_tensors
        lora_pass: MultiLoraPass = ctx.lora_pass
        g = gradient.to(lora_pass.dtype)
        backward = _looped_backward if lora_pass.form == "looped" else _stacked_backward
        grad_x = backward(lora_pass, ctx.layer, dropped, z, g, needs_x=ctx.needs_input_grad[1])
        if grad_x is not None:
            keep = lora_pass.keep(ctx.layer, dropped)
            grad_x = (grad_x if keep is None else grad_x.mul_(keep)).to(ctx.dtypes[0])
        return None, grad_x, gradient if ctx.needs_input_grad[2] else None, None, None


def _looped_forward(
    lora_pass: MultiLoraPass, layer: int, x: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    output = torch.empty_like(base, memory_format=torch.contiguous_format)  # written through flat views
    products = []
    for group, rows, part, result in zip(lora_pass.groups, *lora_pass.parts(x, base, output), strict=True):
        mine = group.layers.get(layer)
        if mine is None:
            result.copy_(part)
            continue
        z = rows @ mine.a_t.to(x.dtype)
        products.append(z)
        b = mine.b.to(x.dtype)
        if base.dtype == x.dtype:
            torch.addmm(part, z, b, alpha=mine.scale, out=result)
        else:
            result.copy_(part + (z @ b) * mine.scale)
    return output, products


def _looped_backward(
    lora_pass: MultiLoraPass,
    layer: int,
    x: torch.Tensor,
    products: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    *,
    needs_x: bool,
) -> torch.Tensor | None:
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    remaining = iter(products)
    for group, rows, g, result in zip(lora_pass.groups, *lora_pass.parts(x, gradient, grad_x), strict=True):
        mine = group.layers.get(layer)
        if mine is None:
            result.zero_()
            continue
        z, unscaled = next(remaining), g @ mine.b_t.to(x.dtype)
        if x.dtype == torch.float32:
            mine.grad_a.addmm_(unscaled.t(), rows, alpha=mine.scale)
            mine.grad_b.addmm_(z.t(), g, alpha=mine.scale)
        else:
            mine.grad_a.add_(unscaled.t() @ rows, alpha=mine.scale)
            mine.grad_b.add_(z.t() @ g, alpha=mine.scale)
        if needs_x:
            torch.addmm(result, unscaled, mine.a.to(x.dtype), beta=0, alpha=mine.scale, out=result)
    return grad_x if needs_x else None


def _stacked_forward(
    lora_pass: MultiLoraPass, layer: int, x: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    stack = lora_pass.stack(layer)
    assert stack is not None
    count = len(stack.adapters)
    a, b, x, part = stack.a, stack.b, x, base
    if stack.rows is None:
        x, part = (tensor.reshape(count, -1, tensor.shape[-1]) for tensor in (x, base))
    else:
        a, b = (matrices.index_select(0, stack.rows) for matrices in (a, b))
    z = torch.bmm(x, a.transpose(1, 2)).mul_(stack.scale)
    # Not a view made here: autograd lets no model change one in place, as Falcon does with its MLP's output.
    output = torch.empty_like(base, memory_format=torch.contiguous_format)
    if base.dtype == x.dtype:
        torch.baddbmm(part, z, b, out=output.view(part.shape))
    else:
        output.view(part.shape).copy_(part + torch.bmm(z, b))
    return output, [z]


def _stacked_backward(
    lora_pass: MultiLoraPass,
    layer: int,
    x: torch.Tensor,
    products: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    *,
    needs_x: bool,
) -> torch.Tensor | None:
    stack = lora_pass.stack(layer)
    assert stack is not None
    count, shape = len(stack.adapters), x.shape
    (z,) = products
    all_a, all_b = stack.gradients()
    a, b = stack.a, stack.b
    if stack.rows is None:
        x, gradient = (tensor.reshape(count, -1, tensor.shape[-1]) for tensor in (x, gradient))
    else:
        a, b = (matrices.index_select(0, stack.rows) for matrices in (a, b))
    grad_z = torch.bmm(gradient, b.transpose(1, 2)).mul_(stack.scale)
    grad_a, grad_b = torch.bmm(grad_z.transpose(1, 2), x), torch.bmm(z.transpose(1, 2), gradient)
    if stack.rows is None:
        all_a.add_(grad_a)
        all_b.add_(grad_b)
    else:
        all_a.index_add_(0, stack.rows, grad_a.float())
        all_b.index_add_(0, stack.rows, grad_b.float())
    return torch.bmm(grad_z, a).view(shape) if needs_x else None
