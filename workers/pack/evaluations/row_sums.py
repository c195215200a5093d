"""What single rows add to the sums that a metric follows from, so that it can be computed of some of them.

`service.analysis.row_statistics` computes the metrics. Those that no sums lead to have none here: `roc_auc`,
`spearman` and `bleu`, and metrics of a study's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.evaluated import Statistic
from workers.pack.measures import Measures
from workers.training.objectives.base import Evaluation
from workers.training.objectives.generated_metrics import prompt_scores
from workers.training.objectives.labels import Answers
from workers.training.objectives.language import Totals
from workers.training.objectives.metrics import entity_counts
from workers.training.objectives.pairs import PairAnswers

MOST_GROUPS = 2_000
"""Rows that are told apart; what so many say of the spread is exact to 2 %."""
MOST_NUMBERS = 20_000
"""Of one evaluation, in all groups together: they travel with its outcome and are kept in the database."""
FEWEST_GROUPS = 100
"""Where a metric takes so many sums that fewer groups would fit, it is not computed of parts."""

Sums = tuple[Statistic, torch.Tensor]
"""How the metric follows, and float64 [N, K]."""


def grouped(sums: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """Rows as they are, or put into groups at random: into the same ones whenever there are as many.

    Args:
        sums: float64 [N, K].
    """
    rows, width = sums.shape
    groups = min(rows, MOST_GROUPS, MOST_NUMBERS // width)
    if groups < rows:
        places = torch.randperm(rows, generator=torch.Generator().manual_seed(rows)) % groups
        sums = torch.zeros(groups, width, dtype=torch.float64).index_add_(0, places, sums)
    return tuple(tuple(row) for row in sums.tolist())


def loss_sums(evaluation: Evaluation) -> torch.Tensor:
    """float64 [N, 2]: loss and targets of each row."""
    if isinstance(evaluation, Totals):
        assert evaluation.rows is not None  # they were asked for
        return torch.stack((evaluation.rows.losses, evaluation.rows.tokens), dim=1)
    assert isinstance(evaluation, Answers | PairAnswers)
    losses = evaluation.losses.double()
    if isinstance(evaluation, Answers) and evaluation.rows is not None:
        return _by_row(evaluation.rows, torch.stack((losses, torch.ones_like(losses)), dim=1))
    return _mean(losses)


def objective_sums(
    evaluation: Evaluation, metric: str, measures: Measures, written: Sequence[str] | None
) -> Sums | None:
    """Of the objective's metric; None: it does not follow from sums, or takes too many of them.

    Args:
        evaluation: What the adapter came to, row by row.
        metric: The objective's.
        measures: What the study measures of texts.
        written: What the adapter wrote from each prompt; None: nothing is generated.
    """
    if metric == "eval_loss":
        return "ratio", loss_sums(evaluation)
    texts = measures.texts
    if texts is not None and metric in texts.wanted:
        assert written is not None
        keys = [prompt.key for prompt in texts.prompts]
        scores = prompt_scores(written, texts.references, keys, metric, texts.spec.answer_pattern)
        return None if scores is None else ("ratio", _mean(torch.tensor(scores)))
    found: Sums | None = None
    if isinstance(evaluation, Totals):
        found = _of_language(evaluation, metric)
    elif isinstance(evaluation, PairAnswers):
        margins = evaluation.margins.double()
        values = {evaluation.accuracy: (margins > 0).double(), "margin": margins}
        found = ("ratio", _mean(values[metric])) if metric in values else None
    elif isinstance(evaluation, Answers):
        found = _of_labels(evaluation, metric)
    return None if found is None or MOST_NUMBERS // found[1].shape[1] < FEWEST_GROUPS else found


def _mean(values: torch.Tensor) -> torch.Tensor:
    values = values.double()
    return torch.stack((values, torch.ones_like(values)), dim=1)


def _by_row(rows: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Sums of targets, int64 [S] of ascending rows, as those of the rows that have any."""
    _, places = torch.unique_consecutive(rows, return_inverse=True)
    return torch.zeros(int(places[-1]) + 1, sums.shape[1], dtype=torch.float64).index_add_(0, places, sums)


def _of_language(totals: Totals, metric: str) -> Sums | None:
    assert totals.rows is not None
    if metric == "perplexity":
        return "exp_ratio", loss_sums(totals)
    if metric == "accuracy":
        return "ratio", torch.stack((totals.rows.correct, totals.rows.tokens), dim=1)
    return None


def _of_labels(answers: Answers, metric: str) -> Sums | None:
    if answers.labels is None:
        return _of_scores(answers, metric)
    if answers.rows is not None:
        return _of_tags(answers, metric)
    logits, targets = answers.answers, answers.targets
    if targets.is_floating_point():
        predicted, actual = (logits > 0).double(), targets.double()
        if metric == "accuracy":
            return "ratio", _mean((predicted == actual).all(dim=1))
        if metric == "micro_f1":
            hits, both = (predicted * actual).sum(1), (predicted + actual).sum(1)
            return "ratio", torch.stack((2 * hits, both), dim=1)
    else:
        classes = logits.shape[1]
        chosen = logits.argmax(dim=1)
        if metric in ("accuracy", "micro_f1"):  # the same where each row has one label
            return "ratio", _mean(chosen == targets)
        predicted = torch.nn.functional.one_hot(chosen, classes).double()
        actual = torch.nn.functional.one_hot(targets, classes).double()
        if metric == "mcc":
            hits = (chosen == targets).double().unsqueeze(1)
            return "mcc", torch.cat((hits, predicted, actual), dim=1)
    if metric == "macro_f1":
        of_all = targets.is_floating_point()
        sums = torch.cat((predicted * actual, predicted, actual), dim=1)
        return ("macro_f1_of_all" if of_all else "macro_f1"), sums
    return None


def _of_tags(answers: Answers, metric: str) -> Sums | None:
    assert answers.rows is not None
    assert answers.labels is not None
    if metric == "accuracy":
        right = answers.answers.argmax(dim=1) == answers.targets
        return "ratio", _by_row(answers.rows, _mean(right))
    if metric != "micro_f1":
        return None
    counts = torch.unique_consecutive(answers.rows, return_counts=True)[1].tolist()
    found = entity_counts(answers.answers, answers.targets, counts, answers.labels.names)
    return "ratio", torch.tensor([(2 * hits, total) for hits, total in found], dtype=torch.float64)


def _of_scores(answers: Answers, metric: str) -> Sums | None:
    x, y = answers.answers.double(), answers.targets.double()
    errors, ones = x - y, torch.ones_like(y)
    if metric == "mse":
        return "ratio", _mean(errors.square())
    if metric == "mae":
        return "ratio", _mean(errors.abs())
    x, y = x - x.mean(), y - y.mean()  # neither changes, and no digits are lost
    if metric == "r2":
        return "r2", torch.stack((ones, y, y * y, errors.square()), dim=1)
    if metric == "pearson":
        return "pearson", torch.stack((ones, x, y, x * x, y * y, x * y), dim=1)
    return None
