"""How a base is quantized, and what it computes in."""

from __future__ import annotations

import logging

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from search_spaces.definition import ModelSpec
from workers.errors import ModelError


def quantization_config(
    spec: ModelSpec, compute_dtype: torch.dtype, outline: PreTrainedModel, heads: list[str]
) -> BitsAndBytesConfig | None:
    """Quantizes all but heads and what transformers spares by itself: the output head and tied weights.

    Args:
        spec: Which quantization; `none` gives None.
        compute_dtype: Of the products with 4-bit weights.
        outline: The model without weights.
        heads: Paths of modules that stay as they are.
    """
    if spec.quantization == "none":
        return None
    spared = [*get_keys_to_not_convert(outline), *heads] if heads else None
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=spared,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
    )


_FULL_PRECISION_ONLY = ("deberta",)
"""Model types whose attention works in float32 only. DeBERTa v2 and v3 are of another type."""


def compute_dtype_of(spec: ModelSpec, device: torch.device, kind: str) -> torch.dtype:
    """The dtype of activations, and of all that is not quantized.

    Args:
        spec: Which one is asked for.
        device: Where the model runs.
        kind: Its `model_type`.

    Raises:
        ModelError: The device does not have the one that is asked for, or the model does not work in it.
    """
    if kind in _FULL_PRECISION_ONLY:
        if spec.compute_dtype not in ("auto", "float32"):
            raise ModelError(
                f"The attention of {spec.id} ({kind}) overflows in {spec.compute_dtype}: it masks with the "
                "least number of float32. Set model.compute_dtype to auto or float32."
            )
        return torch.float32
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    match spec.compute_dtype:
        case "auto":
            return torch.bfloat16 if bfloat16 else torch.float32
        case "float32":
            return torch.float32
        case "float16":
            return torch.float16
        case "bfloat16":
            if device.type == "cuda" and not bfloat16:
                raise ModelError(
                    f"{torch.cuda.get_device_name(device)} does not support bfloat16. Set "
                    "model.compute_dtype to auto or float32."
                )
            return torch.bfloat16


class _Int8CastNotice(logging.Filter):
    """Drops one line that `Linear8bitLt` logs in every forward of every layer in bfloat16.

    It says that activations are cast to float16 to be quantized, which is how LLM.int8() works
    (arXiv 2208.07339) and nothing a person can act on.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


_INT8_CAST_NOTICE = _Int8CastNotice()


def silence_int8_cast_notice() -> None:
    """Keeps that line out of the log from now on."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_INT8_CAST_NOTICE)
