"""NEFTune's noise in shared passes: a trial's own, whatever shares the pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.models import build_tiny_t5
from tests.support.workers.trials import (
    UNLIMITED,
    new_run,
    random_examples,
    relative_difference,
    solo_run,
    train_together,
)
from workers.base.base_model import LoadedBase, load_base
from workers.data.examples import PairExample, Seq2SeqExample
from workers.lora.adapters import AdapterHost
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = random_examples(12, seed=3)
EXAMPLES: dict[Task, Any] = {
    "causal_lm": ROWS,
    "preference": [PairExample(one, other) for one, other in zip(ROWS[:6], ROWS[6:], strict=True)],
    "seq2seq_lm": [
        Seq2SeqExample(row.input_ids, row.input_ids[:5]) for row in random_examples(12, seed=4, vocabulary=40)
    ],
}
NOISY = Recipe(learning_rate=1e-2, batch_size=4, lora_r=4, neftune_alpha=5, adam_epsilon=1e-4, seed=1)
MATE = Recipe(learning_rate=1e-2, batch_size=3, lora_r=8, lora_dropout=0.2, adam_epsilon=1e-4, seed=2)


@pytest.fixture(scope="module")
def bases(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, LoadedBase]:
    folders = {"seq2seq_lm": build_tiny_t5(tmp_path_factory.mktemp("t5"))}
    return {
        task: load_base(
            ModelSpec(id=str(folders.get(task, tiny_base_dir)), quantization="none"),
            torch.device("cpu"),
            task=task,
        )
        for task in EXAMPLES
    }


@pytest.mark.parametrize("task", EXAMPLES)
def test_packed_trials_have_the_noise_that_each_has_alone(bases: dict[Task, LoadedBase], task: Task) -> None:
    loss = "orpo" if task == "preference" else None  # which needs no reference
    noisy, mate = (recipe.model_copy(update={"loss": loss}) for recipe in (NOISY, MATE))
    base, examples = bases[task], EXAMPLES[task]
    alone = {name: solo_run(base, recipe, examples) for name, recipe in (("noisy", noisy), ("mate", mate))}
    together = train_together(base, {"noisy": noisy, "mate": mate}, examples, token_budget=150).trained
    for name, expected in alone.items():
        assert together[name].losses == pytest.approx(expected.losses, rel=1e-4)
        assert relative_difference(together[name].weights, expected.weights) < 1e-4
    quiet = solo_run(base, noisy.model_copy(update={"neftune_alpha": 0.0}), examples)
    assert abs(quiet.losses[0] / alone["noisy"].losses[0] - 1) > 1e-5


def test_an_evaluation_has_no_noise(bases: dict[Task, LoadedBase]) -> None:
    host = AdapterHost(bases["causal_lm"])
    passes = SharedPasses(host, token_budget=UNLIMITED)
    noisy = new_run(host, NOISY, ROWS, name="noisy")
    quiet = new_run(host, NOISY.model_copy(update={"neftune_alpha": 0.0}), ROWS, name="quiet")
    one, other = passes.evaluate([noisy, quiet], ROWS)
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-6)
    host.remove("noisy")
    host.remove("quiet")
