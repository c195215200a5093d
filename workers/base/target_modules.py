"""Which layers of a base a recipe's `target_modules` means. Pure but for reading the module tree."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from search_spaces.recipe import TargetModules
from workers.errors import AdapterError

_ATTENTION_WORDS = ("attn", "attention")
"""What a layer's path holds in the attention blocks of transformers' architectures: `self_attn.q_proj`
(Llama, Qwen, Mistral, Gemma, Phi, OPT), `attn.c_attn` (GPT-2), `attention.query_key_value` (GPT-NeoX),
`self_attention.dense` (Falcon, BLOOM)."""


_HEADS = ("lm_head", "embed_out", "output", "output_layer", "score", "classifier")
"""What architectures call the layer that gives logits."""


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Paths of the linear layers that LoRA can adapt, the output head left out, as PEFT's `all-linear`.

    Call it before any adapter is injected: an adapter's own matrices are linear layers too.
    """
    head = output_head(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name != head
    ]


def output_head(model: PreTrainedModel) -> str | None:
    """The path of the layer that gives logits, which is not adapted, whether or not it is tied."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def resolve_target_modules(
    targets: TargetModules, linear: list[str], architecture: str, head: str | None = None
) -> list[str]:
    """The linear layers that a recipe adapts.

    Args:
        targets: `all-linear`; `attention` (the projections inside attention blocks); or names, each of
            which stands for every linear layer whose path is that name or ends in `.` and that name.
        linear: From `linear_layers`.
        architecture: The model's class, for messages.
        head: From `output_head`, for messages.

    Returns:
        Their paths, in the model's order.

    Raises:
        AdapterError: A name, or the whole, matches no linear layer.
    """
    if targets == "all-linear":
        found = linear
    elif targets == "attention":
        found = [name for name in linear if _in_attention(name)]
    else:
        for target in targets:
            if not any(_matches(name, target) for name in linear):
                raise AdapterError(_no_match(target, linear, architecture, head))
        found = [name for name in linear if any(_matches(name, target) for target in targets)]
    if not found:
        raise AdapterError(
            f"target_modules {targets!r} matches no layer of {architecture}. Name the layers instead; its"
            f" linear layers are called {', '.join(_leaves(linear)) or '(there are none)'}."
        )
    return found


def shortest_suffixes(selected: list[str], every: Iterable[str]) -> list[str]:
    """Names for `adapter_config.json` that mean exactly `selected` among all module paths.

    Each selected path becomes its shortest dotted suffix that ends no path outside `selected`: `q_proj`
    rather than one entry per layer, but `attn.c_proj` where an MLP has a `c_proj` too.
    """
    outside = set(every) - set(selected)
    taken = {suffix for path in outside for suffix in _suffixes(path)}
    return sorted({next(suffix for suffix in _suffixes(path) if suffix not in taken) for path in selected})


def _suffixes(path: str) -> Iterator[str]:
    """A path's dotted suffixes, shortest first."""
    parts = path.split(".")
    return (".".join(parts[-count:]) for count in range(1, len(parts) + 1))


def _matches(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _in_attention(path: str) -> bool:
    *ancestors, _leaf = path.lower().split(".")
    return any(word in part for part in ancestors for word in _ATTENTION_WORDS)


def _leaves(linear: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in linear})


def _no_match(target: str, linear: list[str], architecture: str, head: str | None) -> str:
    leaves = _leaves(linear)
    if target in _HEADS or (head is not None and _matches(head, target)):
        called = f" (called {head!r} there)" if head is not None and not _matches(head, target) else ""
        return (
            f"target_modules names {target!r}, the output head of {architecture}{called}, which is not "
            f"adapted. Leave it out. Layers that can be adapted are called {', '.join(leaves)}."
        )
    nearest = difflib.get_close_matches(target, leaves, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return (
        f"target_modules names {target!r}, which is not a linear layer of {architecture}.{hint}"
        f" Its linear layers are called {', '.join(leaves) or '(there are none)'}."
    )
