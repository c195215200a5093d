"""A trial of each task, head included, goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from search_spaces.definition import DataSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import TASKS, Task
from tests.support.workers.models import build_tiny_base, build_tiny_bert, build_tiny_t5
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import of_type, trial_order
from workers.contract import OutcomeStatus, Progress, Report, TrialOrder, TrialStarted

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RECIPE = Recipe(
    learning_rate=1e-2,
    batch_size=4,
    lora_r=4,
    lora_dropout=0.1,
    weight_decay=0.1,
    head_learning_rate_ratio=0.5,
    neftune_alpha=5,
    adam_epsilon=1e-4,
    seed=3,
)
"""Four steps on 16 rows, with a rung after the second and at the end."""
MATE = Recipe(learning_rate=5e-3, batch_size=8, lora_r=8, target_modules="attention", seed=4)
WORDS = ("lamp", "kitchen", "bedroom", "light", "fox", "dog", "man", "woman", "flute")


def row(task: Task, number: int) -> dict[str, Any]:
    """One of a task's data."""
    one, other = (WORDS[(number * step + step) % len(WORDS)] for step in (1, 4))
    text = f"turn on the {one} in the {other}"
    match task:
        case "causal_lm":
            return {"prompt": text, "completion": other}
        case "seq2seq_lm":
            return {"source": text, "target": other}
        case "sequence_classification":
            return {"text": text, "label": ("on", "off", "none")[number % 3]}
        case "token_classification":
            return {"tokens": text.split(), "labels": ["O", "O", "O", "B-X", "O", "O", "B-Y"]}
        case "regression":
            return {"text": text, "score": number / 4}
        case "ranking" | "preference":
            return {"prompt": text, "chosen": one, "rejected": f"{other} {one}"}


def ordered(folder: Path, task: Task, base: Path, recipe: Recipe, attempt_id: int = 1) -> TrialOrder:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row(task, number)) + "\n" for number in range(16)))
    metric = TASKS[task].default_metric
    order = trial_order(
        folder,
        base,
        attempt_id=attempt_id,
        quantization="none",
        recipe=recipe,
        data=DataSpec(train=str(file), eval=str(file), max_length=48),
        metric=metric,
        direction=None,  # type: ignore[arg-type]
        every_examples=8,
        divergence_factor=100.0,
        micro_batch_size=2,
    )
    return replace(order, task=task)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    bert = build_tiny_bert(tmp_path_factory.mktemp("bert"))
    llama = build_tiny_base(tmp_path_factory.mktemp("llama"))
    own = {
        "causal_lm": llama,
        "preference": llama,
        "seq2seq_lm": build_tiny_t5(tmp_path_factory.mktemp("t5")),
    }
    return {task: own.get(task, bert) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_trial_that_is_resumed_beside_another_equals_the_undisturbed_one(
    tmp_path: Path, bases: dict[Task, Path], task: Task
) -> None:
    order = ordered(tmp_path, task, bases[task], RECIPE)
    whole = Recorder()
    whole.run(replace(order, artifact_dir=f"{order.artifact_dir}-whole"))

    first = Recorder()
    first.pack.admit(order)
    first.run_until(lambda: len(first.of(1, Progress)) == 3)
    run = first.pack._running[1].run
    first.run_until(lambda: len(run.waiting) < RECIPE.batch_size)  # in the middle of a batch
    first.pack._running[1].checkpoint()
    kept = str(shutil.copytree(f"{order.artifact_dir}/checkpoint", tmp_path / "kept"))
    later = replace(order, attempt_id=2, artifact_dir=f"{order.artifact_dir}-later", resume_from=(kept,))
    second = Recorder(slots=2)
    second.run(ordered(tmp_path, task, bases[task], MATE, attempt_id=3), later)

    (started,) = second.of(2, TrialStarted)
    assert (started.resumed_at_examples, started.passed_over) == (12, ())
    expected, outcome = whole.outcomes()[1], second.outcomes()[2]
    assert (outcome.status, expected.status) == (OutcomeStatus.COMPLETED, OutcomeStatus.COMPLETED)
    assert outcome.trainable_parameters == expected.trainable_parameters
    steps, expected_steps = second.of(2, Progress), whole.of(1, Progress)[3:]
    assert [step.train_loss for step in steps] == pytest.approx(
        [step.train_loss for step in expected_steps], rel=1e-4
    )
    reports, expected_reports = second.of(2, Report), whole.of(1, Report)
    assert [report.rung for report in reports] == [8, 16]
    for report, expected_report in zip(reports, expected_reports, strict=True):
        assert report.metrics == pytest.approx(expected_report.metrics, rel=1e-4, abs=1e-6)
    assert (outcome.value, outcome.best_rung) == (pytest.approx(expected.value, rel=1e-4), expected.best_rung)
    saved, expected_saved = (
        load_file(Path(str(one.last_adapter_dir)) / "adapter_model.safetensors")
        for one in (outcome, expected)
    )
    assert saved.keys() == expected_saved.keys()
    assert any("classifier" in name for name in saved) is TASKS[task].has_head
    for name, tensor in saved.items():  # the bias of a ranking's head stays 0
        assert (tensor - expected_saved[name]).norm() <= 1e-4 * expected_saved[name].norm(), name
    assert of_type(second.events, TrialStarted)[0].attempt_id == 3
