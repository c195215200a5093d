"""Trials small enough for tests: examples, data files, orders."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from search_spaces.definition import DataSpec, EvaluationSpec, ModelSpec, ObjectiveSpec
from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.contract import TrialOrder, WorkerSpec
from workers.data.examples import Example
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import Form
from workers.training.divergence import first_examples
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import StepResult, TrialRun

UNLIMITED = 10**6
"""Padded tokens: more than any pass here holds."""

_DEVICES = ("kitchen light", "bedroom lamp", "heating", "fan in the hall", "radio")
_STATES = ("on", "off")


def random_examples(count: int, *, seed: int = 0, longest: int = 20, vocabulary: int = 300) -> list[Example]:
    """Examples of random tokens and lengths, the first part of each masked as a prompt."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(4, longest + 1, (), generator=generator))
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        input_ids = torch.randint(4, vocabulary, (length,), generator=generator)
        labels = input_ids.clone()
        labels[:prompt] = -100
        examples.append(Example(input_ids, labels))
    return examples


def new_run(
    host: AdapterHost,
    recipe: Recipe,
    examples: Sequence[Example],
    *,
    name: str = "trial",
    divergence_factor: float = 100.0,
    micro_batch_size: int | None = None,
    loss_scaled: bool = False,
) -> TrialRun:
    """A trial that has not begun, its adapter on the host's base. Take it off with `host.remove(name)`."""
    adapter = host.add(name, recipe)
    passes = SharedPasses(host, token_budget=UNLIMITED)
    return TrialRun(
        recipe,
        adapter,
        examples,
        start=passes.measure_start(adapter, first_examples(recipe, examples)),
        divergence_factor=divergence_factor,
        micro_batch_size=micro_batch_size,
        loss_scaled=loss_scaled,
    )


@dataclass
class Trained:
    """What a trial's training came to."""

    steps: list[StepResult] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    """As `matrices` gives them, after the last step."""
    ended: Exception | None = None
    """Why it ended early, if it did."""

    @property
    def losses(self) -> list[float]:
        """The train loss of every step."""
        return [step.train_loss for step in self.steps]


def matrices(adapter: Adapter) -> list[torch.Tensor]:
    """Copies of lora_A [r, d_in] and lora_B [d_out, r] of each layer in turn, as PEFT orders them."""
    pairs = ((layer.a, layer.b.t()) for _number, layer in sorted(adapter.layers.items()))
    return [matrix.detach().clone() for pair in pairs for matrix in pair]


@dataclass
class Together:
    """Trials in shared passes, which may be joined and left between two of them.

    Attributes:
        trained: By the name of the trial's adapter.
        passes_made: How many there were.
        waited: Whether some trial had no row in some pass.
        accumulated: Whether some pass held a part of a batch only.
    """

    passes: SharedPasses
    live: list[TrialRun] = field(default_factory=list)
    trained: dict[str, Trained] = field(default_factory=dict)
    passes_made: int = 0
    waited: bool = False
    accumulated: bool = False
    _on_base: list[str] = field(default_factory=list)

    def join(self, run: TrialRun) -> None:
        """From the next pass on."""
        self.live.append(run)
        self._on_base.append(run.adapter.name)
        self.trained[run.adapter.name] = Trained()

    def leave(self, name: str) -> None:
        """Before the next pass. The adapter is taken off the base."""
        run = next(run for run in self.live if run.adapter.name == name)
        self.live.remove(run)
        self._note_weights(run)
        self._on_base.remove(name)
        self.passes.host.remove(name)

    def step(self) -> None:
        """One pass. Trials that have finished or diverged drop out; their adapters stay on the base."""
        advances = self.passes.train(self.live)
        self.passes_made += 1
        self.waited |= len(advances) < len(self.live)
        for advance in advances:
            self.live.remove(advance.run)
            trained = self.trained[advance.run.adapter.name]
            trained.ended = advance.ended
            if advance.step is not None:
                trained.steps.append(advance.step)
            self.accumulated |= advance.step is None and advance.ended is None
            if advance.ended is None and not advance.run.finished:
                self.live.append(advance.run)  # behind those that had no row
            else:
                self._note_weights(advance.run)

    def finish(self) -> dict[str, Trained]:
        """Passes until nobody is left, and the base is without adapters."""
        try:
            while self.live:
                self.step()
        finally:
            for name in self._on_base:
                self.passes.host.remove(name)
        return self.trained

    def _note_weights(self, run: TrialRun) -> None:
        self.trained[run.adapter.name].weights = matrices(run.adapter)


def train_together(
    base: LoadedBase,
    trials: dict[str, Recipe],
    examples: Sequence[Example],
    *,
    token_budget: int = UNLIMITED,
    form: Form | None = None,
    **options: Any,
) -> Together:
    """Trains trials together from their beginning to their end, on a base without adapters.

    Args:
        form: How the products are taken, of adapters in banks; None: as on the device.
        options: For `new_run`.
    """
    host = AdapterHost(base, slots=None if form is None else 4)
    together = Together(SharedPasses(host, token_budget=token_budget, form=form))
    for name, recipe in trials.items():
        together.join(new_run(host, recipe, examples, name=name, **options))
    together.finish()
    return together


def solo_run(base: LoadedBase, recipe: Recipe, examples: Sequence[Example], **options: Any) -> Trained:
    """Trains one trial alone; `options` are those of `train_together`."""
    return train_together(base, {"alone": recipe}, examples, **options).trained["alone"]


def relative_difference(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest of |actual - expected| / |expected| over matrices, in the Frobenius norm; NaN if any is."""
    pairs = zip(actual, expected, strict=True)
    return torch.stack([(one - other).norm() / other.norm() for one, other in pairs]).max().item()


def write_data(file: Path, rows: int, *, seed: int = 0) -> Path:
    """A prompt_completion file of commands and their JSON, learnable in a few steps."""
    choose = random.Random(seed)
    with file.open("w") as handle:
        for _ in range(rows):
            device, state = choose.choice(_DEVICES), choose.choice(_STATES)
            row = {
                "prompt": f"please turn {state} the {device}",
                "completion": json.dumps({"device": device, "state": state}),
            }
            handle.write(json.dumps(row) + "\n")
    return file


def data_spec(folder: Path, *, train_rows: int = 24, eval_rows: int = 8, **fields: Any) -> DataSpec:
    """Train and eval files in `folder`, written if they are not there."""
    train, evaluation = folder / f"train-{train_rows}.jsonl", folder / f"eval-{eval_rows}.jsonl"
    for file, rows, seed in ((train, train_rows, 0), (evaluation, eval_rows, 1)):
        if not file.exists():
            write_data(file, rows, seed=seed)
    return DataSpec(train=str(train), eval=str(evaluation), max_length=64, **fields)


def trial_order(
    folder: Path,
    base_dir: Path,
    *,
    attempt_id: int = 1,
    study_id: str = "study",
    quantization: str = "nf4",
    recipe: Recipe | None = None,
    data: DataSpec | None = None,
    metric: str = "eval_loss",
    direction: str = "minimize",
    every_examples: int | None = None,
    divergence_factor: float = 4.0,
    micro_batch_size: int | None = None,
) -> TrialOrder:
    """An order for one trial, its artifacts under `folder`."""
    return TrialOrder(
        attempt_id=attempt_id,
        study_id=study_id,
        trial_number=attempt_id - 1,
        model=ModelSpec.model_validate({"id": str(base_dir), "quantization": quantization}),
        data=data or data_spec(folder),
        recipe=recipe or Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, lora_dropout=0.0),
        objective=ObjectiveSpec.model_validate({"metric": metric, "direction": direction}),
        evaluation=EvaluationSpec(every_examples=every_examples, divergence_factor=divergence_factor),
        micro_batch_size=micro_batch_size,
        artifact_dir=str(folder / "artifacts" / str(attempt_id)),
    )


def of_type(events: Sequence[object], kind: type) -> list[Any]:
    """The events of one type, in order."""
    return [event for event in events if isinstance(event, kind)]


def worker_spec(
    name: str,
    *,
    num_cpus: float = 1,
    orphan_timeout_s: float = 600,
    training_silence_s: float = 600,
    loading_silence_s: float = 600,
    study_id: str | None = "study",
    keep_base_s: float = 600,
) -> WorkerSpec:
    """A worker on the CPU, with limits that no test reaches by chance; of the study of `trial_order`."""
    return WorkerSpec(
        name=name,
        num_cpus=num_cpus,
        num_gpus=0,
        orphan_timeout_s=orphan_timeout_s,
        training_silence_s=training_silence_s,
        loading_silence_s=loading_silence_s,
        study_id=study_id,
        keep_base_s=keep_base_s,
    )
