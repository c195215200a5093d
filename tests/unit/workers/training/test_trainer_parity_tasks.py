"""Trials of the other tasks are those of `transformers.Trainer` + PEFT on the same batches, heads included.

Where transformers has no loss of its own, the formulas are those of TRL, written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.models import INITIALIZER_RANGE, build_tiny_tokenizer
from workers.base.base_model import load_base
from workers.base.heads import TASK_MODELS, Labels
from workers.data.batches import epoch_order
from workers.data.datasets import TokenizedData
from workers.data.examples import AnyExample, Example, LabelledExample, PairExample, Seq2SeqExample
from workers.device.heartbeat import UNWATCHED
from workers.lora.adapters import AdapterHost
from workers.training.divergence import first_examples
from workers.training.objectives.references import with_references
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import StepResult, TrialRun

# PEFT 0.21 and accelerate 1.15 use properties that transformers 5.23 and torch 2.13 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
COUNT, BATCH, MICRO = 20, 8, 4
"""Of an epoch the last batch has 4 examples. The Trainer's mean is one of means, so all of them are full."""
RECIPE = Recipe(
    learning_rate=2e-2,
    batch_size=BATCH,
    epochs=2,
    weight_decay=0.2,
    lora_r=4,
    lr_scheduler="cosine",
    warmup_ratio=0.3,
    max_grad_norm=0.2,
    adam_epsilon=1e-5,
    seed=11,
)

Inputs = dict[str, torch.Tensor]


def tokens(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(4, 300, (length,), generator=generator)


def example(task: Task, number: int, generator: torch.Generator) -> AnyExample:
    """One of the task, of 6 to 12 tokens."""
    ids = tokens(6 + number % 7, generator)
    match task:
        case "sequence_classification":
            return LabelledExample(ids, None, torch.tensor(number % 3))
        case "regression":
            return LabelledExample(ids, None, torch.randn((), generator=generator))
        case "seq2seq_lm":
            return Seq2SeqExample(ids, tokens(5, generator))
        case _:
            rows = []
            for length in (7 + number % 5, 6 + number % 3):
                row = tokens(length, generator)
                rows.append(Example(row, torch.where(torch.arange(length) < 3, -100, row)))
            return PairExample(*rows)


def examples_of(task: Task) -> list[AnyExample]:
    generator = torch.Generator().manual_seed(4)
    return [example(task, number, generator) for number in range(COUNT)]


def padded(rows: Sequence[torch.Tensor], filler: int = 0) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filler)


def collator(model: PreTrainedModel) -> Callable[[list[AnyExample]], Inputs]:
    """Batches as the model is called with them; a pair is two rows, all chosen ones first, as in TRL."""

    def collate(some: list[AnyExample]) -> Inputs:
        if isinstance(some[0], PairExample):
            pairs = [pair for pair in some if isinstance(pair, PairExample)]
            rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
            labels = padded([row.labels for row in rows], -100)
            ids = [row.input_ids for row in rows]
        else:
            ids = [row.input_ids for row in some if not isinstance(row, PairExample)]
            single = [row.label for row in some if isinstance(row, LabelledExample)]
            written = [row.labels for row in some if isinstance(row, Seq2SeqExample)]
            labels = torch.stack(single) if single else padded(written, -100)
        inputs = {
            "input_ids": padded(ids),
            "attention_mask": padded([torch.ones_like(row) for row in ids]),
            "labels": labels,
        }
        if isinstance(some[0], Seq2SeqExample):
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        return inputs

    return collate


def reward_loss(model: Any, inputs: Inputs) -> torch.Tensor:
    """`trl.RewardTrainer.compute_loss`: -log(sigmoid(chosen - rejected)), the mean of the pairs."""
    given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    chosen, rejected = model(**given).logits.squeeze(-1).chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


def dpo_loss(model: Any, inputs: Inputs, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """`trl.DPOTrainer._compute_loss` with `loss_type="sigmoid"`; the reference has the adapter disabled."""
    labels = inputs["labels"][:, 1:]

    def log_probabilities() -> torch.Tensor:
        given = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        logits = model(**given).logits[:, :-1].log_softmax(-1)
        own = logits.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
        return (own * (labels != -100)).sum(1)

    with torch.no_grad(), model.disable_adapter():
        reference = log_probabilities()
    chosen, rejected = (log_probabilities() - reference).chunk(2)
    delta = beta * (chosen - rejected)
    return (-F.logsigmoid(delta) * (1 - label_smoothing) - F.logsigmoid(-delta) * label_smoothing).mean()


def plain_loss(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What a step reports, whatever is minimized."""
    if task == "regression":
        return F.mse_loss(logits.squeeze(-1), labels)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)


@dataclass
class Noted:
    """What the Trainer did, unrounded."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    """Losses of the current step's micro-batches."""


class Orders(torch.utils.data.Sampler[int]):
    """The data orders of a trial, epoch after epoch."""

    def __init__(self) -> None:
        self._epoch = -1

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(epoch_order(COUNT, RECIPE.seed, self._epoch))


def noting(kind: type[Trainer], task: Task, own_loss: Callable[[Any, Inputs], torch.Tensor] | None) -> Any:
    """A kind of Trainer over a trial's orders that notes what it does.

    Args:
        kind: Trainer or Seq2SeqTrainer.
        task: Of its model.
        own_loss: What it minimizes; None: what the Trainer does by itself.
    """

    class Noting(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # A forward with **kwargs counts as one that divides by the whole batch, and these do not:
            # the Trainer would step by the sum of the micro-batches' means.
            self.model_accepts_loss_kwargs = False
            self.noted = noted = Noted()

            class EndOfStep(TrainerCallback):
                def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                    noted.losses.append(sum(noted.parts) / len(noted.parts))
                    noted.parts.clear()

            self.add_callback(EndOfStep)

        def _get_train_sampler(self, *args: Any) -> Orders:
            return Orders()

        def compute_loss(self, model: Any, inputs: Inputs, *args: Any, **kwargs: Any) -> Any:
            if own_loss is not None:
                loss = own_loss(model, inputs)
                self.noted.parts.append(loss.item())
                return loss
            labels = inputs["labels"]
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            self.noted.parts.append(plain_loss(task, outputs.logits.detach(), labels).item())
            return loss

        def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
            norm = super()._clip_grad_norm(model)
            self.noted.norms.append(float(norm))
            self.noted.rates.append(self._get_learning_rate())
            return norm

    return Noting


def labels_of(task: Task) -> Labels | None:
    return Labels(("no", "perhaps", "yes")) if task == "sequence_classification" else None


def train_reference(
    folder: Path,
    output: Path,
    task: Task,
    recipe: Recipe,
    heads: Sequence[str],
    own_loss: Callable[[Any, Inputs], torch.Tensor] | None,
) -> tuple[Noted, dict[str, torch.Tensor]]:
    """A script's training: what the Trainer noted, and the adapter as PEFT saves it."""
    labels = labels_of(task)
    head = {"num_labels": len(labels.names) if labels else 1} if heads else {}
    set_seed(recipe.seed)  # draws the head that the checkpoint lacks, then the adapter
    model = TASK_MODELS[task].auto.from_pretrained(folder, dtype=torch.float32, **head)
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=int(recipe.alpha),
        target_modules=[
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and module is not model.get_output_embeddings()
            and not name.startswith(tuple(heads))
        ]
        if heads
        else "all-linear",
        modules_to_save=list(heads) or None,
        task_type=TASK_MODELS[task].peft_type,
    )
    peft = get_peft_model(model, config)
    of_text = task == "seq2seq_lm"
    kind = noting(Seq2SeqTrainer if of_text else Trainer, task, own_loss)
    arguments = (Seq2SeqTrainingArguments if of_text else TrainingArguments)(
        output_dir=str(output),
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=BATCH // MICRO,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_ratio,
        lr_scheduler_type=recipe.lr_scheduler,
        max_grad_norm=recipe.max_grad_norm,
        adam_epsilon=recipe.adam_epsilon,
        label_smoothing_factor=0.0 if own_loss else recipe.label_smoothing,
        seed=recipe.seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = kind(peft, arguments, data_collator=collator(model), train_dataset=examples_of(task))
    trainer.train()
    return trainer.noted, {name: value.detach() for name, value in get_peft_model_state_dict(peft).items()}


def train_ours(
    folder: Path, task: Task, recipe: Recipe
) -> tuple[tuple[str, ...], list[StepResult], dict[str, torch.Tensor]]:
    """The same trial: the base's heads, its steps, and the adapter as it is saved."""
    spec = ModelSpec(id=str(folder), quantization="none")
    base = load_base(spec, CPU, task=task, labels=labels_of(task))
    host, examples = AdapterHost(base), examples_of(task)
    if task == "preference":
        data = TokenizedData(tuple(examples), "preference", COUNT, 0, 0, 1, 1)
        examples = list(with_references(host, 200, data, UNWATCHED).examples)
    passes = SharedPasses(host, token_budget=10**6)
    adapter = host.add("trial", recipe)
    start = passes.measure_start(adapter, first_examples(recipe, examples))
    run = TrialRun(recipe, adapter, examples, start=start, divergence_factor=100.0, micro_batch_size=3)
    steps = []
    while not run.finished:
        steps.append(passes.finish_batch(run))
    return base.heads, steps, load(host.files("trial")["adapter_model.safetensors"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_base_dir: Path) -> dict[str, Path]:
    """An encoder, a decoder and an encoder-decoder."""
    folder, tokenizer = tmp_path_factory.mktemp("bases"), build_tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bert = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=INITIALIZER_RANGE,
        )
        t5 = T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
        models = {"bert": BertForMaskedLM(bert), "t5": T5ForConditionalGeneration(t5)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"bert": folder / "bert", "t5": folder / "t5", "llama": tiny_base_dir}


@pytest.mark.parametrize(
    ("task", "family", "smoothing"),
    [
        ("sequence_classification", "bert", 0.0),
        ("sequence_classification", "bert", 0.2),
        ("regression", "bert", 0.0),
        ("seq2seq_lm", "t5", 0.0),
        ("seq2seq_lm", "t5", 0.2),
        ("ranking", "bert", 0.0),
        ("preference", "llama", 0.0),
        ("preference", "llama", 0.2),
    ],
)
def test_every_step_equals_trainer(
    bases: dict[str, Path], tmp_path: Path, task: Task, family: str, smoothing: float
) -> None:
    recipe = RECIPE.model_copy(update={"label_smoothing": smoothing})
    heads, steps, adapter = train_ours(bases[family], task, recipe)

    def dpo(model: Any, inputs: Inputs) -> torch.Tensor:
        return dpo_loss(model, inputs, beta=recipe.preference_beta, label_smoothing=smoothing)

    own_loss = {"ranking": reward_loss, "preference": dpo}.get(task)
    noted, expected = train_reference(bases[family], tmp_path, task, recipe, heads, own_loss)
    assert [step.train_loss for step in steps] == pytest.approx(noted.losses, abs=1e-4)
    assert [step.grad_norm for step in steps] == pytest.approx(noted.norms, rel=1e-3)
    assert [step.learning_rate for step in steps] == noted.rates
    assert adapter.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            adapter[name], weight, rtol=1e-4, atol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )
    assert any(norm > recipe.max_grad_norm for norm in noted.norms)  # clipping matters here
    assert any("bias" in name for name in expected) == bool(heads)  # and decay that spares biases
