"""Measuring what a shared pass costs on this base, at this length, on this device.

A handful of passes with one trial's adapter on its own longest examples. They add to its gradient, which
the next pass zeroes anyway, and move nothing, nor anybody's random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workers.base.base_model import set_training
from workers.base.chunked_loss import chunk_bytes
from workers.data.examples import AnyExample
from workers.device.generators import seeded
from workers.device.memory import allocated_bytes, is_out_of_memory, release
from workers.lora.adapters import Adapter, AdapterHost
from workers.pack.cost_model import MemoryCost, PassCost, fit_pass_cost
from workers.plugins import OwnLoss
from workers.training.objectives.base import Share
from workers.training.objectives.forward import chunk_tokens
from workers.training.objectives.registry import objective_of

_ROWS = 8
"""Rows of the large pass. Enough to tell the price of a token from that of a pass."""

_GROUPS = 4
"""Parts that its rows are split into, to tell the price of a further trial."""

_REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """What the cost model goes by."""

    time: PassCost
    memory: MemoryCost


def probe(host: AdapterHost, adapter: Adapter, examples: Sequence[AnyExample], *, most_tokens: int) -> Costs:
    """Times and weighs a few passes.

    Args:
        host: The base, with the adapter on it.
        adapter: Of one trial.
        examples: The longest ones are taken.
        most_tokens: Padded tokens the largest pass may hold.

    Raises:
        torch.OutOfMemoryError: Not even a single row fits.
    """
    set_training(host.base.model, True)
    longest = sorted(examples, key=lambda example: -example.length)[:_ROWS]
    rows = max(1, min(len(longest), most_tokens // longest[0].length))
    while True:
        try:
            with seeded(0, host.base.device):  # for a base with dropout of its own
                return _measure(host, adapter, longest[:rows])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or rows == 1:
                raise
        release(host.base.device)
        rows //= 2


def _measure(host: AdapterHost, adapter: Adapter, longest: Sequence[AnyExample]) -> Costs:
    rows, tokens = len(longest), longest[0].length
    groups = min(_GROUPS, rows) if host.shares_passes else 1
    base_bytes = allocated_bytes(host.base.device)
    weight = _weigh(host, adapter, longest)  # the first pass of a shape warms up, too
    samples = []
    for count, parts in ((1, 1), (rows, 1), (rows, groups)):
        seconds = min(_time(host, adapter, longest[:count], parts) for _ in range(_REPEATS))
        samples.append((count * tokens, parts, seconds))
    fitted = fit_pass_cost(samples)
    optimizer = min(_time_optimizer(adapter) for _ in range(_REPEATS))
    return Costs(
        PassCost(fitted.fixed_s, fitted.per_token_s, fitted.per_trial_s + optimizer),
        MemoryCost(
            base_bytes=base_bytes,
            bytes_per_token=weight / (rows * tokens),
            chunk_bytes=chunk_bytes(min(chunk_tokens(host.base), rows * tokens), host.base.vocabulary_size),
        ),
    )


def one_pass(
    host: AdapterHost,
    adapter: Adapter,
    examples: Sequence[AnyExample],
    parts: int,
    *,
    own_loss: OwnLoss | None = None,
) -> None:
    """Forward and backward over examples, split into so many groups, as if each were another trial's.

    Without `own_loss`, a recipe's loss that is the study's own is the task's first.
    """
    base = host.base
    adapter.gradient.zero_()
    objective = objective_of(base)
    batch = objective.collate(examples, base)
    size, more = divmod(len(examples), parts)
    counts = [size + (part < more) for part in range(parts)]
    groups = [adapter.rows(count * examples[0].rows) for count in counts]
    shares = [Share(count, adapter.recipe, 1e-6, own_loss=own_loss) for count in counts]
    owners = torch.arange(parts).repeat_interleave(torch.tensor(counts))[batch.target_examples]
    owners, batch = owners.to(base.device), batch.to(base.device)
    with host.multi_lora.running(
        groups,
        tokens=batch.tokens,
        form=host.choose_form(groups),
        device=base.device,
        row_lengths=batch.row_lengths,
    ) as lora_pass:
        losses = objective.losses(base, batch, owners, shares, gradient=True)
        assert losses.objective is not None
        losses.objective.backward()  # type: ignore[no-untyped-call]
        lora_pass.add_stacked_gradients()


def _weigh(host: AdapterHost, adapter: Adapter, examples: Sequence[AnyExample]) -> int:
    """Bytes that a pass takes on top of what is there: its peak on CUDA, what autograd keeps on a CPU."""
    device = host.base.device
    if device.type == "cuda":
        before = allocated_bytes(device)
        torch.cuda.reset_peak_memory_stats(device)
        one_pass(host, adapter, examples, 1)
        return torch.cuda.max_memory_allocated(device) - before
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would refer to the graph that holds it, and a broken pass never end

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        one_pass(host, adapter, examples, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in host.base.model.parameters()}
    return sum(size for pointer, size in saved.items() if pointer not in weights)


def _time(host: AdapterHost, adapter: Adapter, examples: Sequence[AnyExample], parts: int) -> float:
    started = _clock(host.base.device)
    one_pass(host, adapter, examples, parts)
    return _clock(host.base.device) - started


def _time_optimizer(adapter: Adapter) -> float:
    """Seconds of one AdamW step, the costliest optimizer's, on numbers that nobody needs."""
    numbers = torch.nn.Parameter(torch.zeros_like(adapter.master))
    numbers.grad = torch.zeros_like(numbers)
    optimizer = torch.optim.AdamW([numbers], fused=True)
    optimizer.step()
    started = _clock(numbers.device)
    optimizer.step()
    return _clock(numbers.device) - started


def _clock(device: torch.device) -> float:
    """Seconds, when everything before is done.

    A worker with one thread counts the time it was on its core: on a busy machine the clock on the wall
    runs on while others are, and most of all during the longer passes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()
