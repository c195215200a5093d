"""Layers that are given something that belongs to no row of a pass, found without weights.

Such are those of DeBERTa that project the embeddings of relative positions, one table for all rows. What
several adapters add there cannot be told apart, so trials that adapt one train one after the other.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from workers.base.target_modules import linear_layers
from workers.lora.multi_lora import by_rows

_ROWS, _TOKENS = 3, 5
"""Of the pass that finds them."""


def layers_without_rows(outline: PreTrainedModel, heads: Collection[str] = ()) -> frozenset[str]:
    """The paths of these layers and heads, from forward passes that have shapes and no numbers.

    A pass ends where the architecture asks for a number. Layers behind that are not found, so what is found
    is certain, and what is not found is not.

    Args:
        outline: The model on torch's device `meta`.
        heads: Paths of modules that each trial trains whole.
    """
    found: set[str] = set()

    def watch(path: str) -> Any:
        def look(_module: Any, args: tuple[Any, ...]) -> None:
            if args and by_rows(args[0], _ROWS, _TOKENS) is None:
                found.add(path)

        return look

    watched = {*linear_layers(outline), *heads}
    hooks = [outline.get_submodule(path).register_forward_pre_hook(watch(path)) for path in watched]
    input_ids = torch.zeros(_ROWS, _TOKENS, dtype=torch.int64, device="meta")
    outline.eval()
    try:
        for inputs in (
            {},
            {"attention_mask": torch.ones_like(input_ids)},
        ):  # some need one, some ask what is in it
            with torch.no_grad(), suppress(Exception):
                outline(input_ids=input_ids, **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(found)
