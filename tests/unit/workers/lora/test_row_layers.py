"""Layers whose input belongs to no row, found from a model's configuration as a pass finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.families import build_family
from workers.base.base_model import build_without_weights, load_base
from workers.base.heads import Labels, head_paths
from workers.lora.adapters import AdapterHost
from workers.lora.row_layers import layers_without_rows

# transformers' own, from within PEFT.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LABELS = Labels(("no", "yes"))
TASK = "sequence_classification"


@pytest.mark.parametrize(
    ("family", "expected"),
    [("deberta", {"pos_proj", "pos_q_proj"}), ("deberta_v2", {"key_proj", "query_proj"}), ("bert", set())],
)
def test_they_are_those_that_a_pass_over_several_rows_finds(
    family: str, expected: set[str], tmp_path: Path
) -> None:
    folder = build_family(family, tmp_path / family)
    outline = build_without_weights(folder, TASK, LABELS)
    found = layers_without_rows(outline, head_paths(outline))
    assert {path.rpartition(".")[2] for path in found} == expected

    spec = ModelSpec(id=str(folder), quantization="none")
    host = AdapterHost(load_base(spec, torch.device("cpu"), task=TASK, labels=LABELS))
    adapter = host.add("one", Recipe(lora_r=2))
    ids = torch.full((3, 5), 7)
    with (
        host.multi_lora.running([adapter.rows(3)], tokens=5, form="looped", device=torch.device("cpu")),
        torch.no_grad(),
    ):
        host.base.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert host.shares_evaluations == (not found)
