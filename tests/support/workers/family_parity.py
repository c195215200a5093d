"""One family on one task: trials in a pack, the same trials alone, a plain loop, and what they save."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.plain_tasks import PlainTask, answers_of, reload_plain, train_plain
from tests.support.workers.trials import UNLIMITED
from workers.base.base_model import LoadedBase, load_base
from workers.base.heads import Labels
from workers.data.datasets import TokenizedData
from workers.data.examples import (
    AnyExample,
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)
from workers.device.heartbeat import UNWATCHED
from workers.errors import AdapterError, ModelError
from workers.lora.adapters import AdapterHost
from workers.plugins import OwnLoss
from workers.training.objectives.labels import Answers
from workers.training.objectives.references import with_references
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

LABELS: dict[Task, Labels] = {
    "sequence_classification": Labels(("cold", "mild", "warm")),
    "token_classification": Labels(("O", "B-room", "I-room")),
}
EXAMPLES = 6
END = 3
"""The end token, which T5 and BART look for."""
VOCABULARY = 300
RECIPES = (
    # An epsilon above rounding error: Adam divides a gradient by its own size, and where that is rounding
    # only, a weight would move by the learning rate in whatever direction.
    Recipe(
        seed=1,
        learning_rate=1e-2,
        batch_size=2,
        lora_r=4,
        lora_dropout=0.0,
        weight_decay=0.1,
        head_learning_rate_ratio=2.0,
        lr_scheduler="constant",
        warmup_ratio=0.0,
        adam_epsilon=1e-4,
        epochs=1,
    ),
    Recipe(
        seed=2,
        learning_rate=5e-3,
        batch_size=3,
        lora_r=3,
        use_rslora=True,
        lora_dropout=0.0,
        target_modules="attention",
        lr_scheduler="constant",
        warmup_ratio=0.0,
        adam_epsilon=1e-4,
        epochs=1.5,
    ),
)
"""Of different rank, batch, scale and layers; three steps each."""


def examples_of(task: Task) -> list[AnyExample]:
    """Random rows of 5 to 10 tokens."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> torch.Tensor:
        return torch.cat((torch.randint(5, VOCABULARY, (count,), generator=generator), torch.tensor([END])))

    def language(count: int) -> Example:
        tokens = ids(count)
        labels = tokens.clone()
        labels[:2] = -100
        return Example(tokens, labels)

    def one(number: int) -> AnyExample:
        count = 4 + 5 * number % 6
        match task:
            case "sequence_classification":
                return LabelledExample(ids(count), None, torch.tensor(number % 3))
            case "regression":
                return LabelledExample(ids(count), None, torch.tensor(number / 2))
            case "token_classification":
                labels = torch.randint(0, 3, (count + 1,), generator=generator)
                labels[1] = labels[-1] = -100
                return TokenLabelsExample(ids(count), labels)
            case "seq2seq_lm":
                return Seq2SeqExample(ids(count), ids(2 + number % 3))
            case "causal_lm":
                return language(count)
            case _:
                return PairExample(language(count), language(4 + number % 3))

    return [one(number) for number in range(EXAMPLES)]


@dataclass(frozen=True)
class Outcome:
    """What a family is on a task."""

    word: Literal["packed", "alone", "refused"]
    reason: str = ""
    """Of a refusal."""


@dataclass
class TrialNumbers:
    """What one trial came to."""

    losses: list[float]
    """Of every step."""
    files: dict[str, bytes]
    eval_loss: float
    answers: torch.Tensor | None
    """Logits of each target of a head, in the order of the examples; None of other tasks."""

    def weights(self) -> dict[str, torch.Tensor]:
        """The saved matrices and heads, by their names in the model."""
        saved = load(self.files["adapter_model.safetensors"])
        return {name.removeprefix("base_model.model."): one for name, one in saved.items()}


def load_tiny(folder: Path, task: Task, quantization: str, **fields: Any) -> LoadedBase:
    """A family's base with the task's labels."""
    spec = ModelSpec.model_validate({"id": str(folder), "quantization": quantization, **fields})
    return load_base(spec, torch.device("cpu"), task=task, labels=LABELS.get(task))


def with_reference(host: AdapterHost, task: Task, examples: Sequence[AnyExample]) -> list[AnyExample]:
    """The same, with what DPO compares with."""
    if task != "preference":
        return list(examples)
    data = TokenizedData(tuple(examples), b"", len(examples), 0, 0, 1, 1)
    return list(with_references(host, UNLIMITED, data, UNWATCHED).examples)


def train(
    host: AdapterHost,
    examples: Sequence[AnyExample],
    recipes: Sequence[Recipe],
    own_losses: Mapping[str, OwnLoss] | None = None,
) -> list[TrialNumbers]:
    """Trains and evaluates trials together; the base is without adapters again.

    Args:
        host: The base.
        examples: Of the task.
        recipes: Of the trials.
        own_losses: Of the study's own, by the names that recipes have for them.
    """
    passes = SharedPasses(host, token_budget=UNLIMITED)
    runs = []
    for number, recipe in enumerate(recipes):
        adapter = host.add(f"trial-{number}", recipe)
        start = passes.measure_start(adapter, examples)
        own = (own_losses or {}).get(recipe.loss or "")
        runs.append(TrialRun(recipe, adapter, examples, start=start, divergence_factor=100.0, own_loss=own))
    losses: list[list[float]] = [[] for _ in runs]
    while live := [run for run in runs if not run.finished]:
        for advance in passes.train(live):
            if advance.ended is not None:
                raise advance.ended
            if advance.step is not None:
                losses[runs.index(advance.run)].append(advance.step.train_loss)
    numbers = []
    for run, seen, found in zip(runs, losses, passes.evaluate(runs, examples), strict=True):
        answers = found.answers if isinstance(found, Answers) else None
        files = host.files(run.adapter.name)
        numbers.append(TrialNumbers(seen, files, found.metrics()["eval_loss"], answers))
    for run in runs:
        host.remove(run.adapter.name)
    return numbers


def train_like(
    base: LoadedBase, host: AdapterHost, examples: Sequence[AnyExample], recipe: Recipe, folder: Path
) -> PlainTask:
    """The same trial by a plain loop; the labels come from the config.json in `folder`."""
    adapter = host.add("layers", recipe)
    targets = [host._linear[number] for number in adapter.layers]
    host.remove("layers")
    return train_plain(
        Path(base.spec.id),
        folder,
        base.task,
        base.spec.quantization,
        recipe,
        examples,
        heads=base.heads,
        new_heads=base.new_heads,
        targets=targets,
    )


def reloaded_answers(
    base: LoadedBase, numbers: TrialNumbers, examples: Sequence[AnyExample], folder: Path
) -> list[torch.Tensor]:
    """What a fresh model with the saved adapter answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in numbers.files.items():
        (folder / name).write_bytes(content)
    model = reload_plain(Path(base.spec.id), folder, base.task, base.spec.quantization)
    return answers_of(model, examples)


TOLERANCE = 1e-4
"""Relative, of losses, matrices, heads and answers."""


def outcome_of(name: str, base_folder: Path, task: Task, quantization: str, folder: Path) -> Outcome:
    """Trains two trials in every way, and says what the family is on a task.

    Args:
        name: Of the family, for messages.
        base_folder: From `build_family`.
        task: What for.
        quantization: none, nf4 or int8.
        folder: For what is saved.

    Raises:
        AssertionError: Two ways differ.
    """
    try:
        base = load_tiny(base_folder, task, quantization, dropout="off")
        host = AdapterHost(base)
        examples = with_reference(host, task, examples_of(task))
        together = train(host, examples, RECIPES)
    except (ModelError, AdapterError) as error:
        return Outcome("refused", _without_names(str(error)))
    for number, (recipe, found) in enumerate(zip(RECIPES, together, strict=True)):
        where = f"{name}, {task}, {quantization}, trial {number}"
        (alone,) = train(host, examples, [recipe])
        saved = folder / f"{name}-{task}-{quantization}-{number}"
        answers = reloaded_answers(base, found, examples, saved)
        plain = train_like(base, host, examples, recipe, saved)
        for losses in (alone.losses, plain.losses):
            assert found.losses == pytest.approx(losses, rel=TOLERANCE, abs=TOLERANCE), where
        assert found.eval_loss == pytest.approx(alone.eval_loss, rel=TOLERANCE, abs=TOLERANCE), where
        assert_same(found.weights(), alone.weights(), where)
        assert_same(found.weights(), plain.weights, where)
        assert_same(dict(enumerate(answers)), dict(enumerate(plain.answers)), f"{where}, reloaded")
        if found.answers is not None:
            own = torch.cat([answer.flatten() for answer in answers])
            assert_same({"": found.answers.flatten()}, {"": own}, f"{where}, evaluated and reloaded")
    return Outcome("packed" if host.shares_passes else "alone")


def _without_names(reason: str) -> str:
    """A reason for a refusal as it is for every family."""
    reason = re.sub(r"^The model .*? \([\w-]+\)", "The model", reason)
    reason = re.sub(r"of \w+ for its fused", "for its fused", reason)
    return re.sub(r"It can be trained for [\w, ]+\. ", "", reason)


def assert_same(found: Mapping[Any, torch.Tensor], expected: Mapping[Any, torch.Tensor], where: str) -> None:
    """Equal but for rounding, by name."""
    assert found.keys() == expected.keys(), where
    for name, one in expected.items():
        # The bias of a ranking head cancels out: its gradient is rounding only.
        difference = float((found[name] - one).norm() / one.norm().clamp_min(1e-2))
        assert difference <= TOLERANCE, f"{where}: {name} differs by {difference:.1e}"
