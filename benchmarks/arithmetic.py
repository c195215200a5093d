"""How many floating-point operations training needs, and how many a device can do."""

from __future__ import annotations

import statistics

import torch

from workers.lora.adapters import Adapter, AdapterHost


def flops_per_token(host: AdapterHost, adapter: Adapter, *, supervised: float) -> float:
    """Operations that one token costs in training an adapter on a frozen base; a multiply-add is two.

    Counted are the products with weights. A frozen matrix of n weights takes 2n forward and 2n backward,
    for the gradient of its input: so do the linear layers, and the output head at supervised tokens. A
    LoRA matrix takes 2n more, for its own gradient. Not counted: attention's products of tokens with tokens
    (under 3 % of the whole at 512 tokens for the shapes here), norms, the optimizer, and whatever an
    engine does beyond the need: padding, dequantization, masked products, activations computed again.

    Args:
        host: The base.
        adapter: One of the adapters on it.
        supervised: The share of tokens that carry loss.
    """
    model = host.base.model
    head = model.get_output_embeddings()
    own = {id(matrix) for module in model.modules() if hasattr(module, "lora_A") for matrix in _lora(module)}
    frozen = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head and id(module) not in own
    )
    return 4 * (frozen + supervised * head.weight.numel()) + 6 * adapter.trainable_parameters


def _lora(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [*module.lora_A.values(), *module.lora_B.values()]  # type: ignore[union-attr, operator]


def matrix_product_peak(device: torch.device, dtype: torch.dtype, *, size: int = 8_192) -> float:
    """Operations per second of one large product of random square matrices; the median of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for round_ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        if round_ >= 5:
            seconds.append(start.elapsed_time(end) / 1_000)
    return 2 * size**3 / statistics.median(seconds)
