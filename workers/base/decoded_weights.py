"""The quantized weights of a base, decoded once into what it computes in, and kept beside the packed ones.

Without them every product of a layer decodes its weight anew, forwards and backwards. The numbers are those
of the quantized base all the same: on a CPU bit for bit, since bitsandbytes decodes there, too, before it
multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import bitsandbytes as bnb
import bitsandbytes.functional as bnb_functional
import torch

from search_spaces.definition import KeepDecoded
from workers.base.base_model import LoadedBase
from workers.device.memory import available_bytes, is_out_of_memory, release
from workers.errors import ModelError

AUTO_SHARE = {"cpu": 0.5, "cuda": 0.125}
"""With `auto`: largest share of the memory that is left which the decoded weights may take. Less on a GPU,
where larger packs may be worth more; that was never measured."""


def keep_decoded(base: LoadedBase, wanted: KeepDecoded) -> bool:
    """Keeps decoded weights, or no longer does. To ask again for what there is changes nothing.

    LLM.int8() on CUDA is left as it is: it multiplies integers and quantizes the activations, too.

    Args:
        base: With or without adapters.
        wanted: `auto` decides by the memory that is left; `always` does not look at it.

    Returns:
        Whether the base keeps them now.

    Raises:
        ModelError: With `always`, they do not fit. The base keeps none then.
    """
    layers, device, dtype = list(_decodable(base.model)), base.device, base.compute_dtype
    if not layers:
        return False
    if wanted == "never":
        if any(is_decoded(layer) for layer in layers):
            for layer in layers:
                _forget(layer)
            release(device)
        return False
    layers = [layer for layer in layers if not is_decoded(layer)]
    if not layers:
        return True
    size = sum(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize
    if wanted == "auto" and size > AUTO_SHARE[device.type] * available_bytes(device):
        return False
    try:
        for layer in layers:
            _keep(layer, dtype)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        for layer in layers:
            _forget(layer)
    else:
        return True
    release(device)
    if wanted == "always":
        raise ModelError(
            f"The decoded weights of {base.spec.id}, {size / 2**30:.2f} GiB, do not fit the memory of"
            f" {device} beside the quantized ones. Set resources.keep_decoded to auto or never."
        )
    return False


def is_decoded(layer: torch.nn.Module) -> bool:
    """Whether a layer multiplies with a decoded weight that it keeps."""
    return isinstance(vars(layer).get("forward"), _DecodedForward)


class _DecodedForward(partial[torch.Tensor]):
    """The forward of a layer that keeps its decoded weight."""


def _keep(layer: bnb.nn.Linear4bit | bnb.nn.Linear8bitLt, dtype: torch.dtype) -> None:
    weight = _decode(layer, dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    layer.forward = _DecodedForward(_forward, weight, bias)


def _forget(layer: torch.nn.Module) -> None:
    if is_decoded(layer):
        del layer.forward


def _forward(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


@torch.no_grad()
def _decode(layer: bnb.nn.Linear4bit | bnb.nn.Linear8bitLt, dtype: torch.dtype) -> torch.Tensor:
    """[d_out, d_in], as bitsandbytes decodes it in a product."""
    if isinstance(layer, bnb.nn.Linear4bit):
        packed = layer.weight.data.view(-1, 1)
        decoded: torch.Tensor = bnb_functional.dequantize_4bit(packed, layer.weight.quant_state)
        return decoded.to(dtype)
    if layer.weight.CB is not None:
        layer.init_8bit_state()  # which its first forward does otherwise
    state = layer.state
    codes: torch.Tensor = state.CB.data.to(dtype)
    return codes.mul_(state.SCB.unsqueeze(1).mul(1.0 / 127.0))


def _decodable(model: torch.nn.Module) -> Iterator[bnb.nn.Linear4bit | bnb.nn.Linear8bitLt]:
    for module in model.modules():
        is_4bit = isinstance(module, bnb.nn.Linear4bit)
        if is_4bit or (isinstance(module, bnb.nn.Linear8bitLt) and module.weight.device.type == "cpu"):
            yield module
