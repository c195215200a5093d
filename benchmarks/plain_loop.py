"""A trial as one trains it without this project: PEFT's own forward, one trial after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase, set_training
from workers.base.causal_attention import NAME as WITHOUT_MASKS
from workers.base.decoded_weights import keep_decoded
from workers.data.batches import collate
from workers.data.examples import Example
from workers.lora.adapters import AdapterHost
from workers.training.objectives.forward import autocast


def plain_tokens_per_second(
    base: LoadedBase, examples: Sequence[Example], recipe: Recipe, *, rounds: int, least_seconds: float
) -> float:
    """The median rate of a plain QLoRA loop: padded batches, masks, packed weights, all logits, fused AdamW.

    Args:
        base: Without adapters. Its decoded weights are forgotten.
        examples: What it trains on, again and again.
        recipe: Of the adapter, and how many rows a step has.
        rounds: Measurements.
        least_seconds: Of each.

    Returns:
        Tokens of rows per second, padding left out.
    """
    keep_decoded(base, "never")
    attention = base.model.config.get_text_config()._attn_implementation
    if attention == WITHOUT_MASKS:
        base.model.set_attn_implementation("sdpa")
    host = AdapterHost(base)
    host.add("plain", recipe)
    host.activate("plain")
    set_training(base.model, True)
    parameters = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)
    batches = [
        examples[first : first + recipe.batch_size] for first in range(0, len(examples), recipe.batch_size)
    ]
    try:
        _train(base, batches[:1], optimizer, 0.0)  # warms up
        rates = [_train(base, batches, optimizer, least_seconds) for _ in range(rounds)]
    finally:
        host.remove("plain")
        base.model.set_attn_implementation(attention)
    return statistics.median(rates)


def _train(
    base: LoadedBase,
    batches: Sequence[Sequence[Example]],
    optimizer: torch.optim.Optimizer,
    least_seconds: float,
) -> float:
    """Tokens per second of steps for at least so long."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tokens = step = 0
    _wait(base.device)
    started = time.perf_counter()
    while step == 0 or time.perf_counter() - started < least_seconds:
        examples = batches[step % len(batches)]
        batch = collate(examples, base.pad_id).to(base.device)
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.positions + 1] = batch.targets
        with autocast(base):
            loss = base.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, use_cache=False
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(example.length for example in examples)
        step += 1
    _wait(base.device)
    return tokens / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
