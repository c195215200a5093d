"""What each kind of example says of itself, so that whatever packs and counts them need not know the task."""

from __future__ import annotations

import pytest
import torch

from workers.data.examples import (
    AnyExample,
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)

IDS = torch.tensor([5, 6, 7])
ROW = Example(IDS, torch.tensor([-100, 6, 7]))
LONGER = Example(torch.tensor([5, 6, 7, 8]), torch.tensor([-100, -100, -100, 8]))


@pytest.mark.parametrize(
    ("example", "length", "rows", "supervised", "tensors"),
    [
        (ROW, 3, 1, 2, 2),
        (Example(IDS, ROW.labels, torch.zeros(3, dtype=torch.int64)), 3, 1, 2, 3),
        (LabelledExample(IDS, None, torch.tensor(4)), 3, 1, 1, 2),
        (LabelledExample(IDS, torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0])), 3, 1, 1, 3),
        (TokenLabelsExample(IDS, torch.tensor([0, -100, 2])), 3, 1, 2, 2),
        (Seq2SeqExample(IDS, torch.tensor([9, 1])), 5, 1, 2, 2),
        (PairExample(ROW, LONGER), 8, 2, 1, 4),
    ],
)
def test_an_example_says_what_it_takes(
    example: AnyExample, length: int, rows: int, supervised: int, tensors: int
) -> None:
    found = (example.length, example.rows, example.supervised_tokens, len(example.tensors()))
    assert found == (length, rows, supervised, tensors)
