"""Evaluation of adapters: the loss and the metrics of their task over a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from workers.base.base_model import set_training
from workers.data.examples import AnyExample
from workers.device.devices import to_device
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import RowsUnknownError
from workers.training.objectives.base import Evaluation, Share
from workers.training.objectives.registry import objective_of


def length_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices in batches of like length, each of at most `token_budget` padded tokens.

    Longest first, so that a data set that does not fit shows it at once. An example that is longer than
    the budget makes a batch of its own.
    """
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and longest * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[AnyExample],
    *,
    token_budget: int,
    heartbeat: Heartbeat = UNWATCHED,
) -> list[Evaluation]:
    """Evaluates adapters on the same examples, in shared passes.

    Modules are switched to evaluation, all but the quantized ones (see `base_model.set_training`), so
    nothing is drawn from any random generator. Left in evaluation mode; training switches back.

    Args:
        host: The base with the adapters on it.
        adapters: At least one.
        examples: Of the base's task, each with at least one target, in any order; the result does not depend
            on it beyond rounding.
        token_budget: Padded tokens per forward pass.
        heartbeat: Notified of each pass.

    Returns:
        What each adapter came to.

    Raises:
        torch.OutOfMemoryError: A pass did not fit; the same call with a smaller budget may.
    """
    set_training(host.base.model, False)
    lengths = [example.length for example in examples]
    together = max(1, min(len(adapters), token_budget // max(lengths))) if host.shares_evaluations else 1
    totals: list[Evaluation] = []
    for first in range(0, len(adapters), together):
        some = adapters[first : first + together]
        try:
            found = _evaluate(
                host, some, examples, length_batches(lengths, token_budget // len(some)), heartbeat
            )
            if len(some) > 1 and not all(math.isfinite(one.loss_sum) for one in found):
                # 0 x NaN is NaN: what is not finite may be a pack-mate's. Alone it shows whose it is.
                batches = list(length_batches(lengths, token_budget))
                found = [
                    one
                    for adapter in some
                    for one in _evaluate(host, [adapter], examples, batches, heartbeat)
                ]
            totals += found
        except RowsUnknownError:
            if len(some) == 1:
                raise
            return evaluate(host, adapters, examples, token_budget=token_budget, heartbeat=heartbeat)
    return totals


def _evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[AnyExample],
    batches: Iterable[list[int]],
    heartbeat: Heartbeat,
) -> list[Evaluation]:
    base, count = host.base, len(adapters)
    objective = objective_of(base)
    tally = objective.tally(count, base)
    for indices in batches:
        some = [examples[index] for index in indices]
        batch = objective.collate(some * count, base)
        shares = [Share(len(some), adapter.recipe) for adapter in adapters]
        owners = torch.arange(count).repeat_interleave(len(some))[batch.target_examples]
        owners, batch = to_device(owners, base.device), batch.to(base.device)
        groups = [adapter.rows(batch.rows // count) for adapter in adapters]
        with (
            heartbeat.passing("evaluation"),
            host.multi_lora.running(
                groups,
                tokens=batch.tokens,
                form=host.choose_form(groups),
                device=base.device,
                row_lengths=batch.row_lengths,
            ),
        ):
            result = objective.losses(base, batch, owners, shares, gradient=False)
        tally.add(result, batch, indices)
        del result, batch  # else they stay alive through the next pass, and the peak doubles
    return list(tally.results())
