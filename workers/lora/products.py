"""The LoRA product of a layer in its forms, forwards and backwards: see `workers.lora.multi_lora`."""

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
            output, z = _banked_forward(lora_pass, layer, dropped, base)
        ctx.save_for_backward(dropped, *z)  # the mask is cheaper to make again than to keep
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, *z = ctx.saved_tensors
        lora_pass: MultiLoraPass = ctx.lora_pass
        g = gradient.to(lora_pass.dtype)
        backward = _looped_backward if lora_pass.form == "looped" else _banked_backward
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


def _banked_forward(
    lora_pass: MultiLoraPass, layer: int, x: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    # Not a view made here: autograd lets no model change one in place, as Falcon does with its MLP's output.
    output = torch.empty_like(base, memory_format=torch.contiguous_format)
    products = []
    for span, stretch in lora_pass.stretches(layer):
        part, result = base[span], output[span]
        if stretch is None:
            result.copy_(part)
            continue
        z = stretch.rows.times(x[span], stretch.a.transpose(1, 2)).mul_(stretch.scale)
        products.append(z)
        stretch.rows.put(result, z, stretch.b, beside=part)
    return output, products


def _banked_backward(
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
    for span, stretch in lora_pass.stretches(layer):
        if stretch is None:
            grad_x[span].zero_()
            continue
        g, z = gradient[span], next(remaining)
        grad_z = stretch.rows.times(g, stretch.b.transpose(1, 2)).mul_(stretch.scale)
        stretch.rows.add_products(stretch.grad_a, grad_z, x[span])
        stretch.rows.add_products(stretch.grad_b, z, g)
        if needs_x:
            stretch.rows.put(grad_x[span], grad_z, stretch.a)
    return grad_x if needs_x else None
