"""What a study can train for: each task's fields of a row, losses and metrics.

Scales: `bleu` is sacrebleu's, from 0 to 100; every other share or score has 1 as its best value. `margin` is
the mean of the chosen answer's reward less the rejected one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal[
    "causal_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "regression",
    "ranking",
    "preference",
]
Loss = Literal["cross_entropy", "focal", "mse", "huber", "bradley_terry", "dpo", "orpo", "simpo"]
Metric = Literal[
    "eval_loss",
    "perplexity",
    "accuracy",
    "exact_match",
    "rouge_l",
    "bleu",
    "answer_match",
    "macro_f1",
    "micro_f1",
    "mcc",
    "roc_auc",
    "mse",
    "mae",
    "pearson",
    "spearman",
    "r2",
    "pairwise_accuracy",
    "reward_accuracy",
    "margin",
]
Direction = Literal["minimize", "maximize"]

LOSSES: tuple[Loss, ...] = get_args(Loss)
METRICS: tuple[Metric, ...] = get_args(Metric)
_LESS_IS_BETTER = frozenset({"eval_loss", "perplexity", "mse", "mae"})
DIRECTIONS: Mapping[str, Direction] = {
    metric: "minimize" if metric in _LESS_IS_BETTER else "maximize" for metric in METRICS
}
"""Which way each metric is better."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What one task reads, minimizes and measures."""

    required: tuple[str, ...] = ()
    """Fields that every row has. None of a `causal_lm`, whose fields depend on `data.format`."""
    optional: tuple[str, ...] = ()
    losses: tuple[Loss, ...]
    """The first is the default."""
    metrics: tuple[Metric, ...]
    """Measured at every rung."""
    generated: tuple[Metric, ...] = ()
    """Measured of generated text, where `evaluation.generate` says so."""
    default_metric: Metric
    """The objective of a study that names none."""
    has_head: bool = False
    """Whether a new head is trained beside the adapter."""
    no_own_losses: str | None = None
    """Why a study may not bring a loss of its own, to go on after the task's name; None: it may."""

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that a row may have."""
        return (*self.required, *self.optional)

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """All metrics, the generated ones too."""
        return (*self.metrics, *self.generated)


_OF_LANGUAGE: tuple[Metric, ...] = ("eval_loss", "perplexity", "accuracy")
_GENERATED: tuple[Metric, ...] = ("exact_match", "rouge_l", "bleu", "answer_match")
_NO_TARGETS = "whose losses compare two answers, while a loss of one's own compares an answer with its target"

TASKS: Mapping[Task, TaskSpec] = {
    "causal_lm": TaskSpec(
        optional=("text", "prompt", "completion", "messages", "tools", "instruction", "input", "output"),
        losses=("cross_entropy", "focal"),
        metrics=_OF_LANGUAGE,
        generated=_GENERATED,
        default_metric="eval_loss",
    ),
    "seq2seq_lm": TaskSpec(
        required=("source", "target"),
        losses=("cross_entropy", "focal"),
        metrics=_OF_LANGUAGE,
        generated=_GENERATED,
        default_metric="eval_loss",
    ),
    "sequence_classification": TaskSpec(
        required=("text", "label"),
        optional=("text_pair",),
        losses=("cross_entropy", "focal"),
        metrics=("accuracy", "macro_f1", "micro_f1", "mcc", "roc_auc", "eval_loss"),
        default_metric="macro_f1",
        has_head=True,
    ),
    "token_classification": TaskSpec(
        required=("tokens", "labels"),
        losses=("cross_entropy", "focal"),
        metrics=("micro_f1", "accuracy", "eval_loss"),
        default_metric="micro_f1",
        has_head=True,
    ),
    "regression": TaskSpec(
        required=("text", "score"),
        optional=("text_pair",),
        losses=("mse", "huber"),
        metrics=("mse", "mae", "pearson", "spearman", "r2", "eval_loss"),
        default_metric="mse",
        has_head=True,
    ),
    "ranking": TaskSpec(
        required=("chosen", "rejected"),
        optional=("prompt",),
        losses=("bradley_terry",),
        metrics=("pairwise_accuracy", "margin", "eval_loss"),
        default_metric="pairwise_accuracy",
        has_head=True,
        no_own_losses=_NO_TARGETS,
    ),
    "preference": TaskSpec(
        required=("prompt", "chosen", "rejected"),
        losses=("dpo", "orpo", "simpo"),
        metrics=("reward_accuracy", "margin", "eval_loss"),
        default_metric="reward_accuracy",
        no_own_losses=_NO_TARGETS,
    ),
}
