"""A metric that follows from sums over rows has, from the sums of all rows, the value that it always has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search_spaces.definition import GenerateSpec
from service.analysis.row_statistics import statistic
from workers.base.heads import Labels
from workers.pack.evaluations import row_sums
from workers.pack.evaluations.row_sums import grouped, loss_sums, objective_sums
from workers.pack.measures import Measures, Texts
from workers.training.generation import Prompt
from workers.training.objectives.base import Evaluation
from workers.training.objectives.generated_metrics import generated_metrics
from workers.training.objectives.labels import Answers
from workers.training.objectives.language import RowTotals, Totals
from workers.training.objectives.pairs import PairAnswers

N = 40


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def of_language() -> Totals:
    losses, tokens = drawn(N).abs().double(), torch.arange(1, N + 1).double()
    correct = (tokens / 2).floor()
    rows = RowTotals(losses, correct, tokens)
    return Totals(float(losses.sum()), int(correct.sum()), int(tokens.sum()), rows)


def of_classes(count: int) -> Answers:
    targets = torch.arange(N) % count
    return Answers(drawn(N).abs(), drawn(N, count), targets, Labels(tuple("abcd"[:count])))


def of_many_labels() -> Answers:
    targets = (drawn(N, 3) > 0.3).float()
    return Answers(drawn(N).abs(), drawn(N, 3), targets, Labels(("a", "b", "c"), multi_label=True))


def of_tags() -> Answers:
    names = ("O", "B-x", "I-x", "B-y", "I-y")
    rows = torch.arange(N).repeat_interleave(3)
    targets = torch.arange(3 * N) % 5
    answers = drawn(3 * N, 5) + 2 * torch.nn.functional.one_hot(targets, 5)
    return Answers(drawn(3 * N).abs(), answers, targets, Labels(names), rows)


def of_scores() -> Answers:
    targets = drawn(N) * 3 + 100
    return Answers(drawn(N).abs(), targets + drawn(N, 1).squeeze(1), targets, None)


def of_pairs() -> PairAnswers:
    return PairAnswers(drawn(N).abs(), drawn(N), "pairwise_accuracy")


@pytest.mark.parametrize(
    ("evaluation", "metrics", "without"),
    [
        (of_language(), {"eval_loss", "perplexity", "accuracy"}, set()),
        (of_classes(2), {"eval_loss", "accuracy", "macro_f1", "micro_f1", "mcc"}, {"roc_auc"}),
        (of_classes(4), {"eval_loss", "accuracy", "macro_f1", "micro_f1", "mcc"}, set()),
        (of_many_labels(), {"eval_loss", "accuracy", "macro_f1", "micro_f1"}, set()),
        (of_tags(), {"eval_loss", "accuracy", "micro_f1"}, set()),
        (of_scores(), {"eval_loss", "mse", "mae", "pearson", "r2"}, {"spearman"}),
        (of_pairs(), {"eval_loss", "pairwise_accuracy", "margin"}, set()),
    ],
    ids=["language", "two-classes", "four-classes", "many-labels", "tags", "scores", "pairs"],
)
def test_the_sums_of_all_rows_give_the_metric(
    evaluation: Evaluation, metrics: set[str], without: set[str]
) -> None:
    known = evaluation.metrics()
    assert known.keys() == metrics | without
    for metric in metrics:
        found = objective_sums(evaluation, metric, Measures(), None)
        assert found is not None
        name, sums = found
        assert len(sums) == N
        assert float(statistic(name, sums.sum(0).numpy())) == pytest.approx(known[metric], rel=1e-5)
    for metric in without:
        assert objective_sums(evaluation, metric, Measures(), None) is None
    total = loss_sums(evaluation).sum(0)
    assert float(total[0] / total[1]) == pytest.approx(known["eval_loss"])


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "answer_match", "bleu"])
def test_texts_are_judged_prompt_by_prompt(metric: str) -> None:
    references = ["it is 1", "it is 2", "it is 2.0", "it is 3"]
    asked = (torch.tensor([number]) for number in (1, 2, 2, 3))
    prompts = tuple(Prompt(tokens, text, None) for tokens, text in zip(asked, references, strict=True))
    keys = [prompt.key for prompt in prompts]
    spec = GenerateSpec(answer_pattern="[0-9.]+")
    measures = Measures(Texts(spec, prompts, ("exact_match", "rouge_l", "answer_match", "bleu")))
    written = ["it is 1", "it is 2", "it is 2", "no"]
    found = objective_sums(of_language(), metric, measures, written)
    if metric == "bleu":
        assert found is None
        return
    assert found is not None
    whole = generated_metrics(written, references, keys, [metric], spec.answer_pattern)[metric]
    assert (len(found[1]), float(statistic(found[0], found[1].sum(0).numpy()))) == (3, pytest.approx(whole))


def test_many_rows_are_put_into_the_same_groups_whatever_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "MOST_GROUPS", 7)
    sums = torch.stack((torch.arange(N).double(), torch.ones(N).double()), dim=1)
    first, second = grouped(sums), grouped(2 * sums)
    assert len(first) == 7
    assert [(2 * a, 2 * b) for a, b in first] == list(second)
    assert sum(a for a, _ in first) == sums[:, 0].sum()


def test_a_metric_of_too_many_classes_is_not_computed_of_parts() -> None:
    many = 200
    labels = Labels(tuple(str(number) for number in range(many)))
    answers = Answers(drawn(N).abs(), drawn(N, many), torch.arange(N), labels)
    found: Any = objective_sums(answers, "macro_f1", Measures(), None)
    assert found is None
    assert objective_sums(answers, "accuracy", Measures(), None) is not None
