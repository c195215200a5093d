"""Metrics of a data set's predictions, by scikit-learn's, SciPy's and seqeval's definitions. Pure.

Where a prediction is not finite, every metric is NaN: the trial has diverged, and no number may hide it.
Where a definition divides by zero though all is finite, as the correlation with predictions that are all
the same, the metric is what a prediction without information gets (0, or 0.5 for `roc_auc`), and not NaN:
an untrained head may predict one value for all, and that is no divergence.

The libraries are imported where they are used: they take two seconds, and causal language models need none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch


def class_metrics(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """How well N predictions over C classes meet their targets.

    `accuracy`; `macro_f1`, the mean over the classes among targets and predictions, where a class that is
    never right counts 0; `micro_f1`; `mcc`, Matthews' correlation coefficient; and with two classes
    `roc_auc`, 0.5 where all targets are of one.

    With several labels for a target, a label is predicted if its probability is above one half. `accuracy`
    is the share of targets with all labels right, `macro_f1` the mean over all C labels; `mcc` and
    `roc_auc` are missing.

    Args:
        logits: [N, C] in any floating dtype, N at least 1.
        targets: int64 [N], classes; or float32 [N, C], 1 for each label that applies and 0 for the others.
    """
    from sklearn import metrics

    multi_label = targets.is_floating_point()
    names = ["accuracy", "macro_f1", "micro_f1"]
    if not multi_label:
        names += ["mcc", "roc_auc"] if logits.shape[1] == 2 else ["mcc"]
    if not logits.isfinite().all():
        return dict.fromkeys(names, math.nan)
    predicted = ((logits > 0) if multi_label else logits.argmax(dim=1)).int().numpy(force=True)
    actual = targets.int().numpy(force=True)
    values = {
        "accuracy": metrics.accuracy_score(actual, predicted),
        "macro_f1": metrics.f1_score(actual, predicted, average="macro", zero_division=0),
        "micro_f1": metrics.f1_score(actual, predicted, average="micro", zero_division=0),
    }
    varied = bool((actual != actual[0]).any())
    if "mcc" in names:
        values["mcc"] = metrics.matthews_corrcoef(actual, predicted) if varied else 0.0
    if "roc_auc" in names:
        scores = (logits[:, 1].double() - logits[:, 0].double()).numpy(force=True)
        values["roc_auc"] = metrics.roc_auc_score(actual, scores) if varied else 0.5
    return {name: float(value) for name, value in values.items()}


def token_metrics(
    logits: torch.Tensor, targets: torch.Tensor, rows: Sequence[int], names: Sequence[str]
) -> dict[str, float]:
    """How well the tags of S tokens are met.

    `micro_f1` is over entities, as seqeval finds them by default (and the CoNLL-2000 script `conlleval`):
    from `B-`, `I-`, `E-` and `S-` tags of any scheme, where an entity also starts at an `I-` that follows
    another type or nothing. `L-` and `U-` (BILOU) stand for `E-` and `S-`. Names without such a beginning
    are types of their own: neighbours of one name are one entity. `O` is outside of all. It is 0 where
    there is no entity at all. `accuracy` is over tokens.

    Args:
        logits: [S, C] in any floating dtype, S at least 1.
        targets: int64 [S].
        rows: How many of the S tokens each sequence has, in order; no entity goes beyond a sequence's end.
        names: The names of the C classes.
    """
    from seqeval.metrics import f1_score

    if not logits.isfinite().all():
        return {"micro_f1": math.nan, "accuracy": math.nan}
    predicted = logits.argmax(dim=1)
    actual, found = (_tags(tensor, rows, names) for tensor in (targets, predicted))
    return {
        "micro_f1": float(f1_score(actual, found, average="micro", zero_division=0)),
        "accuracy": (predicted == targets).double().mean().item(),
    }


def entity_counts(
    logits: torch.Tensor, targets: torch.Tensor, rows: Sequence[int], names: Sequence[str]
) -> list[tuple[int, int]]:
    """Of each sequence: entities that were found, and those that are there or were predicted together.

    Twice the first over the second, both summed, is `token_metrics`'s `micro_f1`. Arguments as there.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    sequences = (_tags(tensor, rows, names) for tensor in (targets, logits.argmax(dim=1)))
    for actual, found in zip(*sequences, strict=True):
        there, predicted = set(get_entities(actual)), set(get_entities(found))
        counts.append((len(there & predicted), len(there) + len(predicted)))
    return counts


def _tags(classes: torch.Tensor, rows: Sequence[int], names: Sequence[str]) -> list[list[str]]:
    """The tags of each sequence, as seqeval reads them."""
    tags = [_tag(name) for name in names]
    return [[tags[index] for index in row.tolist()] for row in torch.split(classes.cpu(), list(rows))]


def _tag(name: str) -> str:
    """What seqeval reads as it is meant: it takes a name's first letter for the scheme's."""
    if name in ("O", "B", "I", "E", "S") or name[:2] in ("B-", "I-", "E-", "S-"):
        return name
    if name[:2] in ("L-", "U-"):
        return {"L": "E", "U": "S"}[name[0]] + name[1:]
    return f"I-{name}"


def regression_metrics(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """How well N scores meet their targets: `mse`, `mae`, `pearson`, `spearman` and `r2`.

    The correlations are 0 where all scores or all targets are the same. `r2` with targets that are all the
    same is 1 if they are met and 0 if not, as in scikit-learn.

    Args:
        scores: [N] in any floating dtype, N at least 1.
        targets: float32 [N].
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import r2_score

    if not scores.isfinite().all():
        return dict.fromkeys(["mse", "mae", "pearson", "spearman", "r2"], math.nan)
    errors = scores.double() - targets.double()
    found, actual = (tensor.double().numpy(force=True) for tensor in (scores, targets))
    varied = all(values.min() < values.max() for values in (found, actual))
    return {
        "mse": errors.square().mean().item(),
        "mae": errors.abs().mean().item(),
        "pearson": float(pearsonr(found, actual).statistic) if varied else 0.0,
        "spearman": float(spearmanr(found, actual).statistic) if varied else 0.0,
        "r2": float(r2_score(actual, found)) if len(found) > 1 else float(found[0] == actual[0]),
    }


def pair_metrics(
    margins: torch.Tensor, accuracy: Literal["pairwise_accuracy", "reward_accuracy"]
) -> dict[str, float]:
    """How often the chosen answer has the larger reward, a tie being wrong as in TRL, and the mean margin.

    Args:
        margins: float32 [N], N at least 1: the reward of the chosen answer less that of the rejected one.
        accuracy: The name of the first.
    """
    margins = margins.double()
    if not margins.isfinite().all():
        return {accuracy: math.nan, "margin": math.nan}
    return {accuracy: (margins > 0).double().mean().item(), "margin": margins.mean().item()}
