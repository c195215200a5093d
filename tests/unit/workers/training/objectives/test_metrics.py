"""Metrics against scikit-learn, SciPy and seqeval on random predictions, and where those are undefined."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval import metrics as seqeval_metrics
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn_metrics

from workers.training.objectives.metrics import class_metrics, pair_metrics, regression_metrics, token_metrics

NAN = pytest.approx(math.nan, nan_ok=True)
shapes = {"rows": st.integers(1, 40), "classes": st.integers(2, 6), "seed": st.integers(0, 10_000)}


def problem(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, with ties among them, classes, and labels of which any number applies."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator).mul_(4).round_().div_(2)
    one = torch.randint(classes, (rows,), generator=generator)
    several = torch.randint(2, (rows, classes), generator=generator).float()
    return logits, one, several


@given(**shapes)
def test_class_metrics_are_scikit_learns(rows: int, classes: int, seed: int) -> None:
    logits, targets, _ = problem(rows, classes, seed)
    actual, predicted = targets.numpy(), logits.argmax(1).numpy()
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(actual, predicted),
        "macro_f1": sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0),
        "micro_f1": sklearn_metrics.f1_score(actual, predicted, average="micro", zero_division=0),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")
        expected["mcc"] = sklearn_metrics.matthews_corrcoef(actual, predicted)
    if classes == 2:
        expected["roc_auc"] = 0.5
        if len(set(actual)) == 2:
            # The order is all that counts, and that of float32 probabilities may have ties of its own.
            probabilities = logits.double().softmax(1)[:, 1].numpy()
            expected["roc_auc"] = sklearn_metrics.roc_auc_score(actual, probabilities)
    assert class_metrics(logits, targets) == pytest.approx(expected)


@given(**shapes)
def test_metrics_of_several_labels_are_scikit_learns(rows: int, classes: int, seed: int) -> None:
    logits, _, targets = problem(rows, classes, seed)
    actual, predicted = targets.int().numpy(), (logits.sigmoid() > 0.5).int().numpy()
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(actual, predicted),
        "macro_f1": sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0),
        "micro_f1": sklearn_metrics.f1_score(actual, predicted, average="micro", zero_division=0),
    }
    assert class_metrics(logits, targets) == pytest.approx(expected)


def test_one_class_for_all_is_no_error_and_says_nothing() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = class_metrics(logits, torch.tensor([1, 0, 1, 0]))
    assert found == pytest.approx(
        {"accuracy": 0.5, "macro_f1": 1 / 3, "micro_f1": 0.5, "mcc": 0.0, "roc_auc": 0.5}
    )
    assert class_metrics(logits, torch.tensor([1, 1, 1, 1]))["roc_auc"] == 0.5
    assert class_metrics(logits[:1], torch.tensor([0]))["macro_f1"] == 0.0
    none = class_metrics(torch.full((2, 3), -1.0), torch.zeros(2, 3))
    assert none == {"accuracy": 1.0, "macro_f1": 0.0, "micro_f1": 0.0}


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER", "B-two-words", "I-two-words"]


def sequences(lengths: list[int], classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets, most of which agree."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    targets = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), targets] += 2
    return logits, targets


def named(values: torch.Tensor, lengths: list[int], names: list[str]) -> list[list[str]]:
    return [[names[index] for index in row] for row in torch.split(values, lengths)]


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    tags=st.integers(1, len(TAGS)),
    seed=st.integers(0, 10_000),
)
def test_entities_are_seqevals(lengths: list[int], tags: int, seed: int) -> None:
    names = TAGS[:tags]
    logits, targets = sequences(lengths, tags, seed)
    actual, predicted = named(targets, lengths, names), named(logits.argmax(1), lengths, names)
    expected = {
        "micro_f1": seqeval_metrics.f1_score(actual, predicted, zero_division=0),
        "accuracy": seqeval_metrics.accuracy_score(actual, predicted),
    }
    assert token_metrics(logits, targets, lengths, names) == pytest.approx(expected)


def one_hot(tags: list[str], names: list[str]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([names.index(tag) for tag in tags]), len(names)).float()


def f1(actual: list[str], predicted: list[str], rows: list[int] | None = None) -> float:
    names = sorted({*actual, *predicted})
    targets = torch.tensor([names.index(tag) for tag in actual])
    return token_metrics(one_hot(predicted, names), targets, rows or [len(actual)], names)["micro_f1"]


def test_the_mode_is_that_of_conlleval_and_not_the_strict_one() -> None:
    actual, predicted = ["O", "B-PER", "I-PER"], ["O", "I-PER", "I-PER"]
    assert f1(actual, predicted) == 1.0
    assert seqeval_metrics.f1_score([actual], [predicted], mode="strict", scheme=IOB2, zero_division=0) == 0.0


def test_no_entity_goes_beyond_its_sequence() -> None:
    tags = ["I-PER", "I-PER"]
    assert f1(tags, ["I-PER", "O"], [2]) == 0.0
    assert f1(tags, ["I-PER", "O"], [1, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("actual", "predicted", "expected"),
    [
        (["ORG", "ORG", "O"], ["ORG", "ORG", "O"], 1.0),  # seqeval alone takes ORG for outside
        (["SUBJ", "SUBJ"], ["SUBJ", "O"], 0.0),  # and each SUBJ for an entity
        (["PER", "XER"], ["PER", "PER"], 0.0),  # and these for one type
        (["NOUN", "VERB", "NOUN"], ["NOUN", "VERB", "VERB"], 0.4),
    ],
)
def test_names_without_a_scheme_are_types_of_their_own(
    actual: list[str], predicted: list[str], expected: float
) -> None:
    assert f1(actual, predicted) == pytest.approx(expected)


def test_bilou_tags_are_those_of_iobes() -> None:
    bilou = ["B-PER", "I-PER", "L-PER", "U-PER", "U-PER", "O"]
    assert f1(bilou, bilou) == 1.0
    assert f1(bilou, ["B-PER", "I-PER", "L-PER", "U-PER", "O", "O"]) == pytest.approx(0.8)


scores = st.lists(
    st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=2, max_size=30
)


@given(pairs=scores)
def test_regression_metrics_are_scikit_learns_and_scipys(pairs: list[tuple[float, float]]) -> None:
    found, targets = torch.tensor(pairs, dtype=torch.float64).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = {
            "mse": sklearn_metrics.mean_squared_error(targets, found),
            "mae": sklearn_metrics.mean_absolute_error(targets, found),
            "pearson": stats.pearsonr(found, targets).statistic,
            "spearman": stats.spearmanr(found, targets).statistic,
            "r2": sklearn_metrics.r2_score(targets, found),
        }
    defined = {name: 0.0 if math.isnan(value) else value for name, value in expected.items()}
    assert regression_metrics(found.float(), targets.float()) == pytest.approx(defined, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("found", "targets", "r2"),
    [
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], -5.415),
        ([1.0, 2.0], [5.0, 5.0], 0.0),
        ([5.0, 5.0], [5.0, 5.0], 1.0),
    ],
)
def test_correlations_are_zero_where_all_is_the_same(
    found: list[float], targets: list[float], r2: float
) -> None:
    result = regression_metrics(torch.tensor(found), torch.tensor(targets))
    assert (result["pearson"], result["spearman"]) == (0.0, 0.0)
    assert result["r2"] == pytest.approx(r2, abs=1e-3)


def test_a_single_score_has_metrics() -> None:
    assert regression_metrics(torch.tensor([1.0]), torch.tensor([3.0])) == {
        "mse": 4.0,
        "mae": 2.0,
        "pearson": 0.0,
        "spearman": 0.0,
        "r2": 0.0,
    }
    assert regression_metrics(torch.tensor([3.0]), torch.tensor([3.0]))["r2"] == 1.0


def test_scores_that_hardly_differ_correlate_without_a_warning() -> None:
    found = torch.tensor([1.0, 1.0 + 2**-23, 1.0, 1.0 + 2**-23])
    result = regression_metrics(found, torch.tensor([1.0, 2.0, 1.0, 2.0]))
    assert (result["pearson"], result["spearman"]) == pytest.approx((1.0, 1.0))


@given(margins=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=30))
def test_a_tie_is_wrong_and_the_margin_is_the_mean(margins: list[float]) -> None:
    assert pair_metrics(torch.tensor(margins), "pairwise_accuracy") == pytest.approx(
        {
            "pairwise_accuracy": sum(margin > 0 for margin in margins) / len(margins),
            "margin": sum(margins) / len(margins),
        },
        abs=1e-9,
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_have_no_metric(poison: float) -> None:
    logits, one, several = problem(5, 2, 0)
    logits[3, 1] = poison
    scores = logits[:, 1]
    for found, names in [
        (class_metrics(logits, one), "accuracy macro_f1 micro_f1 mcc roc_auc"),
        (class_metrics(logits, several), "accuracy macro_f1 micro_f1"),
        (token_metrics(logits, one, [2, 3], ["O", "B-PER"]), "micro_f1 accuracy"),
        (regression_metrics(scores, several[:, 0]), "mse mae pearson spearman r2"),
        (pair_metrics(scores, "reward_accuracy"), "reward_accuracy margin"),
    ]:
        assert found == dict.fromkeys(names.split(), NAN)


def test_half_precision_predictions_are_taken() -> None:
    logits, one, several = problem(9, 2, 1)
    scores = several[:, 0]
    half = logits.bfloat16()
    assert class_metrics(half, one) == class_metrics(half.float(), one)
    assert class_metrics(half, several) == class_metrics(half.float(), several)
    assert regression_metrics(half[:, 0], scores) == regression_metrics(half[:, 0].float(), scores)
