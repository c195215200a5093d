"""What the base without an adapter gives the answers of preference pairs: DPO's reference.

Every trial of a study has the same one, so it is computed once for each data set.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import set_training
from workers.data.batches import collate
from workers.data.datasets import TokenizedData
from workers.data.examples import PairExample
from workers.heartbeat import Heartbeat
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import RowGroup
from workers.training.evaluation import length_batches
from workers.training.objectives.pairs import answer_log_probabilities, rows_of


def needs_references(recipe: Recipe, data: TokenizedData) -> bool:
    """Whether a trial's loss goes by a reference that the data does not have yet."""
    first = data.examples[0]
    if not isinstance(first, PairExample) or data.format == "ranking":
        return False
    return recipe.loss in (None, "dpo") and first.reference is None


@torch.no_grad()
def with_references(
    host: AdapterHost, token_budget: int, data: TokenizedData, heartbeat: Heartbeat
) -> TokenizedData:
    """The same pairs with the log-probabilities of both answers.

    Args:
        host: The base, whatever adapters are on it.
        token_budget: Padded tokens per forward pass.
        data: Of pairs.
        heartbeat: Notified of each pass.

    Raises:
        torch.OutOfMemoryError: A pass did not fit.
    """
    base = host.base
    set_training(base.model, False)
    found: dict[int, tuple[float, float]] = {}
    for indices in length_batches([example.length for example in data.examples], token_budget):
        batch = collate(rows_of([data.examples[index] for index in indices]), base.pad_id).to(base.device)
        nobody = [RowGroup({}, batch.rows)]
        with (
            heartbeat.passing("evaluation"),
            host.multi_lora.running(nobody, tokens=batch.tokens, form="looped", device=base.device),
        ):
            sums = answer_log_probabilities(base, batch).view(-1, 2).tolist()
        found |= {index: (chosen, rejected) for index, (chosen, rejected) in zip(indices, sums, strict=True)}
    pairs = [example for example in data.examples if isinstance(example, PairExample)]
    return replace(data, examples=tuple(replace(pair, reference=found[i]) for i, pair in enumerate(pairs)))
