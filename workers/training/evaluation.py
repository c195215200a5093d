"""Evaluation of adapters: the loss and the metrics of their task over a data set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workers.base.base_model import LoadedBase, set_training
from workers.data.examples import AnyExample
from workers.device.devices import to_device
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import RowsUnknownError
from workers.training.objectives.base import Evaluation, Share, TaskBatch
from workers.training.objectives.registry import objective_of

_NUMBERS_A_TOKEN = 4
"""Of 8 bytes, that a batch holds for each of its positions at most: its token, whether it is one, and a
target with its place."""


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


class CollatedSets:
    """Batches of the sets that are evaluated again and again, on the CPU: made once, as long as they are few.

    A set is known by its examples themselves, which are kept with its batches, and must not change.
    """

    def __init__(self, most_bytes: int = 64 * 2**20) -> None:
        """
        Args:
            most_bytes: Of all sets together; a set that alone is larger is not kept.
        """
        self._most = most_bytes
        self._sets: OrderedDict[tuple[int, int, int], _Collated] = OrderedDict()

    def batches(
        self, examples: Sequence[AnyExample], copies: int, token_budget: int, base: LoadedBase
    ) -> Iterable[tuple[list[int], TaskBatch]]:
        """Each batch: indices of its examples, and these as many times as there are adapters.

        Args:
            examples: At least one.
            copies: Adapters.
            token_budget: Padded tokens of a batch, all copies together.
            base: Whose task they are of.
        """
        key = (id(examples), copies, token_budget)
        known = self._sets.pop(key, None)
        if known is not None:
            self._sets[key] = known
            return known.batches
        return self._make(key, examples, base)

    def _make(
        self, key: tuple[int, int, int], examples: Sequence[AnyExample], base: LoadedBase
    ) -> Iterator[tuple[list[int], TaskBatch]]:
        _, copies, token_budget = key
        objective, kept, size = objective_of(base), list[tuple[list[int], TaskBatch]](), 0
        for indices in length_batches([example.length for example in examples], token_budget // copies):
            batch = objective.collate([examples[index] for index in indices] * copies, base)
            size += _NUMBERS_A_TOKEN * 8 * batch.padded_tokens
            if size <= self._most:
                kept.append((indices, batch))
            yield indices, batch
        if size <= self._most:
            self._sets[key] = _Collated(examples, kept, size)
            while sum(one.size for one in self._sets.values()) > self._most:
                self._sets.popitem(last=False)


@dataclass(frozen=True)
class _Collated:
    examples: Sequence[AnyExample]
    batches: list[tuple[list[int], TaskBatch]]
    size: int
    """Bytes, at most."""


@torch.no_grad()
def evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[AnyExample],
    token_budget: int,
    heartbeat: Heartbeat = UNWATCHED,
    collated: CollatedSets | None = None,
    *,
    per_row: bool = False,
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
        collated: Batches of earlier evaluations; None: nothing is kept.
        per_row: Whether it matters what each example comes to.

    Returns:
        What each adapter came to.

    Raises:
        torch.OutOfMemoryError: A pass did not fit; the same call with a smaller budget may.
    """
    set_training(host.base.model, False)
    collated = collated or CollatedSets(most_bytes=0)
    longest = max(example.length for example in examples)
    together = max(1, min(len(adapters), token_budget // longest)) if host.shares_evaluations else 1
    totals: list[Evaluation] = []
    for first in range(0, len(adapters), together):
        some = adapters[first : first + together]
        try:
            totals += _evaluate(host, some, examples, token_budget, heartbeat, collated, per_row)
        except RowsUnknownError:
            if len(some) == 1:
                raise
            return evaluate(host, adapters, examples, token_budget, heartbeat, collated, per_row=per_row)
    return totals


def _evaluate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    examples: Sequence[AnyExample],
    token_budget: int,
    heartbeat: Heartbeat,
    collated: CollatedSets,
    per_row: bool,
) -> list[Evaluation]:
    base, count = host.base, len(adapters)
    objective = objective_of(base)
    tally = objective.tally(count, base, rows=len(examples) if per_row else 0)
    for indices, batch in collated.batches(examples, count, token_budget, base):
        shares = [Share(len(indices), adapter.recipe) for adapter in adapters]
        owners = torch.arange(count).repeat_interleave(len(indices))[batch.target_examples]
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
