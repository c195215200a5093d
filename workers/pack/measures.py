"""What a study measures beyond its task's metrics: of generated text, and by functions of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.definition import GenerateSpec
from workers.base.base_model import LoadedBase
from workers.contract import OutcomeStatus, TrialOrder
from workers.data.datasets import TokenizedData
from workers.data.examples import Example, Seq2SeqExample
from workers.errors import DataError, RowError
from workers.plugins import EvalAnswers, OwnMetric, load_metrics
from workers.training.generation import Prompt, prompt_of
from workers.training.objectives.base import Evaluation
from workers.training.objectives.generated_metrics import generated_metrics, measurable, wanted_metrics
from workers.training.objectives.labels import Answers, check_label_metrics
from workers.training.objectives.pairs import PairAnswers
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialEndedError, TrialRun


@dataclass(frozen=True, eq=False)
class Texts:
    """What adapters are to write, and how it is judged."""

    spec: GenerateSpec
    prompts: tuple[Prompt, ...]
    wanted: tuple[str, ...]
    """Generated metrics."""

    @property
    def references(self) -> list[str]:
        """What each prompt should lead to."""
        return [prompt.reference for prompt in self.prompts]


@dataclass(frozen=True, eq=False)
class Measures:
    """Of one study. All its trials have the same ones."""

    texts: Texts | None = None
    """None: nothing is generated."""
    own: tuple[OwnMetric, ...] = ()

    @property
    def at_the_end(self) -> bool:
        """Whether they are taken at a trial's end only."""
        return self.texts is not None and self.texts.spec.when == "end"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that come of them."""
        generated = () if self.texts is None else self.texts.wanted
        return (*generated, *(metric.name for metric in self.own))

    def write(self, passes: SharedPasses, runs: Sequence[TrialRun]) -> list[list[str] | None]:
        """What each trial writes from each prompt; None: nothing is generated.

        Raises:
            DoesNotFitError: One prompt of one trial does not fit.
        """
        if self.texts is None or not runs:
            return [None] * len(runs)
        new = self.texts.spec.max_new_tokens
        return [*passes.generate(runs, self.texts.prompts, max_new_tokens=new)]

    def metrics(
        self, evaluation: Evaluation, order: TrialOrder, written: Sequence[str] | None
    ) -> dict[str, float]:
        """The task's own metrics of one trial and these.

        Args:
            evaluation: What the trial came to.
            order: Its order.
            written: What it wrote from each prompt; None: nothing is generated.

        Raises:
            WorkerError: One of the study's own functions does not return a finite number.
        """
        metrics = evaluation.metrics()
        texts = self.texts
        if texts is not None and written is not None:
            keys = [prompt.key for prompt in texts.prompts]
            pattern = texts.spec.answer_pattern
            metrics |= generated_metrics(written, texts.references, keys, texts.wanted, pattern)
        if not self.own:
            return metrics
        answers = EvalAnswers(
            task=order.task,
            metrics=dict(metrics),
            texts=None if written is None else tuple(written),
            references=None if texts is None else tuple(texts.references),
            **_arrays(evaluation),
        )
        return metrics | {metric.name: metric.measure(answers) for metric in self.own}


def read_measures(order: TrialOrder, data: TokenizedData, base: LoadedBase) -> Measures:
    """What an order's study measures, with the prompts and references of its eval data.

    Raises:
        DataError: The data has no prompt for a text or no answer in it, or not the two labels of a ROC curve.
        PluginError: A function of the study's own cannot be used.
    """
    if order.rate_sweep is not None:  # which evaluates nothing
        return Measures()
    if base.labels is not None:
        check_label_metrics(base.labels, named_metrics(order))
    return Measures(_read_texts(order, data, base), load_metrics(order.metrics, order.limits.plugins))


def named_metrics(order: TrialOrder) -> dict[str, str]:
    """The metrics that a study's definition names, each with what it is there."""
    names = dict.fromkeys(order.constrained, "has a constraint")
    return {**names, order.objective.metric: "is the objective"}


def check_metrics(
    metrics: Mapping[str, float], order: TrialOrder, rung: int, *, later: Collection[str]
) -> None:
    """Nothing is ever substituted for a metric: missing fails the trial, not finite is divergence.

    Args:
        metrics: What was measured at a rung.
        order: The trial's.
        rung: Its examples.
        later: Metrics that only a later rung has.

    Raises:
        TrialEndedError: The trial ends here.
    """
    for metric, what in named_metrics(order).items():
        if metric not in metrics and metric not in later:
            raise TrialEndedError(
                OutcomeStatus.FAILED,
                f"The evaluation at {rung:,} examples produced no {metric!r}, which {what};"
                f" it produced {', '.join(sorted(metrics))}.",
            )
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrialEndedError(
                OutcomeStatus.DIVERGED,
                f"Diverged: {name} is {value} in the evaluation at {rung:,} examples.",
            )


def _read_texts(order: TrialOrder, data: TokenizedData, base: LoadedBase) -> Texts | None:
    needed = named_metrics(order)
    spec, names = wanted_metrics(order.task, order.evaluation.generate, needed)
    if not names:
        return None
    prompts = []
    for number, example in enumerate(data.examples[: spec.examples], 1):
        assert isinstance(example, Example | Seq2SeqExample)  # only language models generate
        try:
            prompts.append(prompt_of(example, base.tokenizer))
        except RowError as error:
            raise DataError(f"Eval example {number} of {order.data.eval}: {error}") from error
    references = [prompt.reference for prompt in prompts]
    return Texts(spec, tuple(prompts), measurable(references, names, needed, spec.answer_pattern))


def _arrays(evaluation: Evaluation) -> dict[str, Any]:
    """What an `EvalAnswers` shows of an evaluation."""
    if isinstance(evaluation, PairAnswers):
        return {"answers": evaluation.margins.numpy()}
    if not isinstance(evaluation, Answers):
        return {}
    return {
        "answers": evaluation.answers.numpy(),
        "targets": evaluation.targets.numpy(),
        "labels": () if evaluation.labels is None else evaluation.labels.names,
        "rows": None if evaluation.rows is None else evaluation.rows.numpy(),
    }
