"""Losses of a study's own: packed, alone and in a plain loop; and what they may not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from search_spaces.recipe import Recipe
from search_spaces.tasks import Task
from tests.support.workers import plain_tasks
from tests.support.workers.families import build_family
from tests.support.workers.family_parity import (
    RECIPES,
    assert_same,
    examples_of,
    load_tiny,
    reloaded_answers,
    train,
    train_like,
)
from workers.base.chunked_loss import target_losses
from workers.base.heads import Labels
from workers.data.examples import AnyExample, LabelledExample
from workers.errors import LossError, LossNotFiniteError
from workers.lora.adapters import AdapterHost
from workers.plugins import OwnLoss
from workers.training.objectives.base import Share
from workers.training.objectives.labels import LabelledRows, weighed
from workers.training.objectives.losses import class_losses
from workers.training.objectives.own_losses import own_losses, values_and_slopes

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Function = Callable[[torch.Tensor, torch.Tensor], Any]


def under_predicting(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The squared error, three times as much where the score is too small."""
    error = answers - targets
    return torch.where(error < 0, 3.0, 1.0) * error**2


def ordinal(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and by how many classes the answer is off on average."""
    classes = torch.arange(answers.shape[1], device=answers.device)
    distance = (classes - targets.unsqueeze(1)).abs()
    return F.cross_entropy(answers, targets, reduction="none") + (answers.softmax(1) * distance).sum(1)


def own(function: Function, name: str = "mine") -> OwnLoss:
    return OwnLoss(name, f"my_losses:{name}", function)


OWN = {"mine": own(ordinal), "under": own(under_predicting, "under")}


def plain(model: Any, examples: Sequence[AnyExample], task: Task) -> torch.Tensor:
    """The same losses in a script of its own, of the model's own logits."""
    rows: Sequence[Any] = examples
    match task:
        case "regression":
            scores = plain_tasks._texts(model, [row.input_ids for row in rows]).squeeze(-1)
            gap = torch.stack([row.label for row in rows]) - scores
            return 3 * gap.clamp(min=0) ** 2 + gap.clamp(max=0) ** 2
        case "sequence_classification":
            logits = plain_tasks._texts(model, [row.input_ids for row in rows])
            labels = torch.stack([row.label for row in rows])
        case "token_classification":
            logits, labels = plain_tasks._tokens(model, rows)
        case "seq2seq_lm":
            logits, labels = plain_tasks._seq2seq(model, rows)
        case _:
            logits, labels = plain_tasks._language(model, rows)
    found = []
    for logit, label in zip(logits, labels, strict=True):
        if label != -100:
            p = logit.softmax(0)
            off = sum(p[c] * abs(c - int(label)) for c in range(len(p)))
            found.append(off - p[label].log())
    return torch.stack(found)


FAMILIES = {
    "sequence_classification": "bert",
    "token_classification": "bert",
    "regression": "bert",
    "causal_lm": "llama",
    "seq2seq_lm": "t5",
}
"""Of the language models the first makes its logits in chunks, and the other one all at once."""


@pytest.mark.parametrize(("task", "family"), FAMILIES.items())
def test_a_trial_in_a_pack_equals_itself_alone_and_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task, family: str
) -> None:
    monkeypatch.setattr(plain_tasks, "losses_of", plain)
    base = load_tiny(build_family(family, tmp_path / "base"), task, "none", dropout="off")
    assert base.head_is_plain == (family == "llama")
    host, examples = AdapterHost(base), examples_of(task)
    name = "under" if task == "regression" else "mine"
    recipes = [RECIPES[0].model_copy(update={"loss": name}), RECIPES[1]]
    together = train(host, examples, recipes, OWN)
    for found, recipe in zip(together, recipes, strict=True):
        (alone,) = train(host, examples, [recipe], OWN)
        assert found.losses == pytest.approx(alone.losses, rel=1e-6, abs=1e-6)
        assert found.eval_loss == pytest.approx(alone.eval_loss, rel=1e-5)
        assert_same(found.weights(), alone.weights(), "alone")
    answers = reloaded_answers(base, together[0], examples, tmp_path / "saved")
    expected = train_like(base, host, examples, recipes[0], tmp_path / "saved")
    assert_same(together[0].weights(), expected.weights, "plain")
    assert_same(dict(enumerate(answers)), dict(enumerate(expected.answers)), "reloaded")
    # The loss matters, and what a step reports is the task's plain one all the same.
    (usual,) = train(host, examples, [RECIPES[0]])
    assert usual.losses[0] == pytest.approx(together[0].losses[0], rel=1e-6)
    assert usual.losses[-1] != pytest.approx(together[0].losses[-1], rel=1e-4)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_values_and_gradient_are_those_of_autograd() -> None:
    logits, targets = numbers(5, 3).requires_grad_(), torch.tensor([0, 1, 2, 2, 1])
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0])
    (expected,) = torch.autograd.grad((ordinal(logits, targets) * weights).sum(), logits)
    values = own_losses(OWN["mine"], logits, targets)
    (found,) = torch.autograd.grad((values * weights).sum(), logits)
    torch.testing.assert_close(values.detach(), ordinal(logits, targets).detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_in_chunks_of_logits_it_is_the_same(chunk_tokens: int) -> None:
    head = torch.nn.Linear(4, 7, bias=False).requires_grad_(False)
    hidden, targets, weights = numbers(8, 4).requires_grad_(), torch.arange(8) % 7, numbers(8, seed=1)
    expected = (ordinal(head(hidden), targets) * weights).sum()
    (slopes,) = torch.autograd.grad(expected, hidden)
    found = target_losses(
        head,
        hidden,
        targets,
        weights,
        own=lambda logits, wanted: values_and_slopes(OWN["mine"], logits, wanted),
        chunk_tokens=chunk_tokens,
    )
    assert found.objective is not None
    torch.testing.assert_close(found.objective, expected)
    torch.testing.assert_close(torch.autograd.grad(found.objective, hidden)[0], slopes)
    plain_losses = F.cross_entropy(head(hidden), targets, reduction="none").detach()
    torch.testing.assert_close(found.losses, plain_losses)
    assert found.correct.tolist() == (head(hidden).argmax(1) == targets).tolist()


@pytest.mark.parametrize("weights", [None, torch.tensor([3.0, 1.0, 0.5])])
def test_class_weights_are_those_of_a_built_in_loss(weights: torch.Tensor | None) -> None:
    logits, targets = numbers(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    mine = own(lambda answers, wanted: F.cross_entropy(answers, wanted, reduction="none"))
    shares = [
        Share(4, Recipe(loss="mine"), 0.25, weights, mine),
        Share(2, Recipe(), 0.5, weights),
    ]
    answers = logits.clone().requires_grad_()
    found = weighed(answers, targets, torch.tensor([0, 0, 0, 0, 1, 1]), shares, gradient=True)
    assert found.objective is not None
    counts = torch.tensor([0.25] * 4 + [0.5] * 2)
    same = logits.clone().requires_grad_()
    expected = (class_losses(same, targets, class_weights=weights) * counts).sum()
    torch.testing.assert_close(found.objective, expected)
    found.objective.backward()
    expected.backward()
    torch.testing.assert_close(answers.grad, same.grad)
    torch.testing.assert_close(found.losses, class_losses(logits, targets))


def test_rows_of_several_labels_have_one_value_which_class_weights_cannot_split() -> None:
    objective = LabelledRows(Labels(("angry", "spam"), multi_label=True))
    rows = [LabelledExample(torch.tensor([5]), None, torch.tensor([1.0, 0.0]))]
    assert objective.class_weights(Recipe(loss="mine"), rows) is None
    assert objective.class_weights(Recipe(class_weights="balanced"), rows) is not None
    with pytest.raises(LossError, match="class_weights cannot be used with mine, a loss of the study's own"):
        objective.class_weights(Recipe(loss="mine", class_weights="balanced"), rows)


class Broken(torch.autograd.Function):
    """Its gradient is an error."""

    @staticmethod
    def forward(ctx: Any, answers: torch.Tensor) -> torch.Tensor:
        return answers.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise ValueError("no way back")


def raising(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise KeyError("price")


RETURNED = "returned {}; it must return one value for each target, float32 [3] on cpu."
NO_GRADIENT = (
    "returned values from which no gradient leads back to the answers; it must be differentiable with regard"
    " to them."
)
FINITE = "has a {} of {} at answers that are finite; it must be finite too."


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raising, "raised KeyError: 'price'."),
        (lambda a, t: Broken.apply(a), "raised ValueError: no way back."),
        (lambda a, t: a.sub_(t) ** 2, "raised RuntimeError: a leaf Variable that requires grad"),
        (lambda a, t: (a - t).mean().item(), RETURNED.format("an object of type float")),
        (lambda a, t: None, RETURNED.format("an object of type NoneType")),
        (lambda a, t: ((a - t) ** 2).mean(), RETURNED.format("float32 [] on cpu")),
        (lambda a, t: ((a - t) ** 2).unsqueeze(1), RETURNED.format("float32 [3, 1] on cpu")),
        (lambda a, t: ((a - t) ** 2).double(), RETURNED.format("float64 [3] on cpu")),
        (lambda a, t: (a > t).long(), RETURNED.format("int64 [3] on cpu")),
        (lambda a, t: (a > t).float(), NO_GRADIENT),
        (lambda a, t: (a - t).detach() ** 2, NO_GRADIENT),
        (lambda a, t: torch.ones(3, requires_grad=True) * t, NO_GRADIENT),
        (lambda a, t: (a - t) / 0, FINITE.format("value", "inf")),
        (lambda a, t: (a - t) * torch.nan, FINITE.format("value", "nan")),
        (lambda a, t: (a - a.detach()).abs().sqrt(), FINITE.format("gradient", "nan")),
        (
            lambda a, t: (a - t) ** 2 / len(a),
            "gave one target the values 0.0833333 and 0.25, beside other targets; it must look at each target"
            " by itself, because batches are split and trials share passes.",
        ),
    ],
)
def test_what_a_loss_does_wrong_is_said_with_its_name(function: Function, words: str) -> None:
    answers, targets = torch.tensor([0.5, 1.0, -1.0]), torch.tensor([0.0, 2.0, 1.0])
    with pytest.raises(LossError) as caught:
        own_losses(own(function, "odd"), answers.requires_grad_(), targets)
    assert str(caught.value).startswith(f"The loss odd of my_losses:odd {words}")
    assert isinstance(caught.value, LossNotFiniteError) == words.startswith("has a ")


def test_one_target_shows_a_mean_over_targets_too() -> None:
    with pytest.raises(LossError, match=r"returned float32 \[1\] on cpu; it must return .* float32 \[2\]"):
        values_and_slopes(own(lambda a, t: (a - t).mean().view(1)), torch.ones(1), torch.zeros(1))


def test_answers_that_are_not_finite_are_nobodys_fault_and_reach_no_function() -> None:
    values, slopes = values_and_slopes(
        own(raising), torch.tensor([[1.0, torch.inf], [0.0, 0.0]]), torch.ones(2)
    )
    assert (values.shape, slopes.shape) == ((2,), (2, 2))
    assert values.isnan().all()
    assert slopes.isnan().all()


def test_memory_that_runs_out_is_not_the_losss_fault() -> None:
    def full(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("the test's device is full")

    with pytest.raises(torch.OutOfMemoryError):
        values_and_slopes(own(full), torch.ones(2), torch.ones(2))


def test_targets_that_a_loss_changes_are_its_own_copy() -> None:
    targets = torch.tensor([1.0, 2.0])
    values_and_slopes(own(lambda a, t: a * t.mul_(2)), torch.ones(2), targets)
    assert targets.tolist() == [1.0, 2.0]
