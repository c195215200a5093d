"""Training of every task as a script would write it: the oracle of the families' parity tests.

Its model is a fresh one, loaded by transformers and adapted by PEFT, and its losses are torch's own. With the
project it shares the order of the data and which layers are adapted, which its configuration names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
)

from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers.plain_training import batch_orders
from workers.data.examples import (
    AnyExample,
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)

_AUTO: dict[Task, tuple[Any, str]] = {
    "causal_lm": (AutoModelForCausalLM, "CAUSAL_LM"),
    "preference": (AutoModelForCausalLM, "CAUSAL_LM"),
    "seq2seq_lm": (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    "sequence_classification": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "regression": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "ranking": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "token_classification": (AutoModelForTokenClassification, "TOKEN_CLS"),
}


@dataclass
class PlainTask:
    """What a plain loop came to."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Matrices and heads, by their names in the model."""
    answers: list[torch.Tensor] = field(default_factory=list)
    """Of every example after training, as `answers_of`."""


def load_plain(folder: Path, task: Task, quantization: str, heads: Sequence[str], config: Any = None) -> Any:
    """The base as transformers loads it, without its own dropout, in training mode: in evaluation,
    bitsandbytes computes otherwise."""
    given: dict[str, Any] = {} if config is None else {"config": config}
    spared = list(heads) or None
    if quantization == "nf4":
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=spared,
        )
    elif quantization == "int8":
        given["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    model = _AUTO[task][0].from_pretrained(folder, dtype=torch.float32, **given)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def train_plain(
    base_folder: Path,
    config_folder: Path,
    task: Task,
    quantization: str,
    recipe: Recipe,
    examples: Sequence[AnyExample],
    *,
    heads: Sequence[str],
    new_heads: Sequence[str],
    targets: Sequence[str],
) -> PlainTask:
    """Trains one adapter by PEFT's forward and torch's AdamW and clipping.

    Args:
        base_folder: Of the base.
        config_folder: Of its config.json with the labels.
        task: What for.
        quantization: none, nf4 or int8.
        recipe: The trial's.
        examples: Of the task.
        heads: Modules that are trained whole.
        new_heads: Those of them that are drawn.
        targets: Layers that LoRA adapts.
    """
    config = AutoConfig.from_pretrained(config_folder) if heads else None
    with torch.random.fork_rng(devices=[]):
        model = load_plain(base_folder, task, quantization, heads, config)
        torch.manual_seed(recipe.seed)
        _draw_again(model, new_heads)
        peft = get_peft_model(
            model,
            LoraConfig(
                r=recipe.lora_r,
                lora_alpha=recipe.alpha,  # type: ignore[arg-type]
                use_rslora=recipe.use_rslora,
                target_modules=list(targets),
                modules_to_save=list(heads) or None,
                task_type=_AUTO[task][1],
            ),
        )
    peft.train()
    trained = {name: one for name, one in peft.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(_groups(trained, recipe), eps=recipe.adam_epsilon)
    result = PlainTask()
    for batch in batch_orders(recipe, len(examples)):
        loss = losses_of(peft, [examples[index] for index in batch], task).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), recipe.max_grad_norm)
        optimizer.step()
        result.losses.append(loss.item())
    for name, parameter in trained.items():
        path = name.removeprefix("base_model.model.").replace(".modules_to_save", "").replace(".default", "")
        result.weights[path] = parameter.detach().clone()
    result.answers = answers_of(peft, examples)
    return result


def reload_plain(base_folder: Path, adapter_folder: Path, task: Task, quantization: str) -> Any:
    """A saved adapter on a fresh base, as a user loads it."""
    has_head = (adapter_folder / "config.json").exists()
    config = AutoConfig.from_pretrained(adapter_folder) if has_head else None
    saved = LoraConfig.from_pretrained(adapter_folder).modules_to_save or ()
    model = load_plain(base_folder, task, quantization, list(saved), config)
    return PeftModel.from_pretrained(model, adapter_folder).train()


def _draw_again(model: Any, heads: Sequence[str]) -> None:
    """Has transformers initialise heads anew, as where a checkpoint lacks them."""
    if not heads:
        return
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = True
    model._is_hf_initialized = False
    for head in heads:
        for module in model.get_submodule(head).modules():
            for one in (module, *module.parameters(recurse=False)):
                one._is_hf_initialized = False
    model.initialize_weights()


def _groups(trained: dict[str, torch.nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """As `transformers.Trainer` makes them, and the heads' by themselves."""
    groups = []
    for name, parameter in trained.items():
        is_head = "lora_" not in name
        spared = name.endswith("bias") or "norm" in name.lower()
        ratio = recipe.head_learning_rate_ratio if is_head else 1.0
        decay = 0.0 if spared else recipe.weight_decay
        groups.append({"params": [parameter], "lr": recipe.learning_rate * ratio, "weight_decay": decay})
    return groups


def losses_of(model: Any, examples: Sequence[AnyExample], task: Task) -> torch.Tensor:
    """[S]: the loss of every target of a padded batch."""
    match examples[0]:
        case Example():
            logits, labels = _language(model, [one for one in examples if isinstance(one, Example)])
            return F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
        case Seq2SeqExample():
            logits, labels = _seq2seq(model, examples)
            return F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
        case TokenLabelsExample():
            logits, labels = _tokens(model, examples)
            return F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
        case LabelledExample():
            logits = _texts(model, [one.input_ids for one in examples])  # type: ignore[union-attr]
            labels = torch.stack([one.label for one in examples])  # type: ignore[union-attr]
            if task == "regression":
                return (logits.squeeze(-1) - labels) ** 2
            return F.cross_entropy(logits, labels, reduction="none")
        case PairExample() if task == "ranking":
            chosen, rejected = _texts(model, _rows(examples)).view(-1, 2).unbind(1)
            return -F.logsigmoid(chosen - rejected)
    policy = _answer_sums(model, examples)
    with torch.no_grad(), model.disable_adapter():
        reference = _answer_sums(model, examples)
    gain = policy - reference
    return -F.logsigmoid(0.1 * (gain[:, 0] - gain[:, 1]))


@torch.no_grad()
def answers_of(model: Any, examples: Sequence[AnyExample]) -> list[torch.Tensor]:
    """What the model answers, each example by itself and so without any padding: logits of what a head says,
    log-probabilities of target tokens, or sums of them for each of a pair's answers."""
    answers = []
    for one in examples:
        match one:
            case Example():
                logits, labels = _language(model, [one])
            case Seq2SeqExample():
                logits, labels = _seq2seq(model, [one])
            case TokenLabelsExample():
                logits, labels = _tokens(model, [one])
                answers.append(logits[labels != -100])
                continue
            case LabelledExample():
                answers.append(_texts(model, [one.input_ids])[0])
                continue
            case PairExample():
                has_head = "CAUSAL_LM" not in str(model.active_peft_config.task_type)
                rows = _texts(model, _rows([one])) if has_head else _answer_sums(model, [one])
                answers.append(rows.flatten())
                continue
        targets = labels != -100
        answers.append(F.log_softmax(logits[targets], -1).gather(1, labels[targets, None])[:, 0])
    return answers


def _padded(rows: Sequence[torch.Tensor], filler: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filler)


def _inputs(rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Padded with the token 0, which is the pad token of the tests' tokenizer."""
    return {
        "input_ids": _padded(rows, 0),
        "attention_mask": _padded([torch.ones_like(row) for row in rows], 0),
    }


def _texts(model: Any, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return model(**_inputs(rows)).logits


def _tokens(model: Any, examples: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _texts(model, [one.input_ids for one in examples])
    return logits.flatten(0, 1), _padded([one.labels for one in examples], -100).flatten()


def _language(model: Any, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = _texts(model, [one.input_ids for one in examples])
    labels = _padded([one.labels for one in examples], -100)
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def _seq2seq(model: Any, examples: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    labels = _padded([one.labels for one in examples], -100)
    logits = model(**_inputs([one.input_ids for one in examples]), labels=labels).logits
    return logits.flatten(0, 1), labels.flatten()


def _rows(pairs: Sequence[Any]) -> list[torch.Tensor]:
    return [row.input_ids for pair in pairs for row in (pair.chosen, pair.rejected)]


def _answer_sums(model: Any, pairs: Sequence[Any]) -> torch.Tensor:
    """[N, 2]: the log-probabilities of chosen and rejected answers."""
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    logits, labels = _language(model, rows)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    return -losses.view(len(rows), -1).sum(1).view(-1, 2)
