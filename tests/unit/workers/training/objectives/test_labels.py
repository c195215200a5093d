"""Rows and tokens with labels: what the model is given, each trial's own loss, what evaluations come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.base.heads import Labels
from workers.data.examples import AnyExample, LabelledExample, TokenLabelsExample
from workers.errors import DataError
from workers.training.objectives.base import PassLosses, Share
from workers.training.objectives.labels import LabelledRows, LabelledTokens
from workers.training.objectives.losses import class_losses, regression_losses

LABELS = Labels(("no", "perhaps", "yes"))
SEVERAL = Labels(("angry", "short", "spam"), multi_label=True)


@dataclass
class Model:
    """Gives the logits that it was made with, and notes what it was called with."""

    logits: torch.Tensor
    given: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, **inputs: torch.Tensor) -> Any:
        self.given = inputs
        return SimpleNamespace(logits=self.logits)


def base_of(logits: torch.Tensor | None = None) -> tuple[LoadedBase, Model]:
    """A base in float32 on the CPU."""
    model = Model(torch.zeros(()) if logits is None else logits)
    base = SimpleNamespace(
        model=model, pad_id=9, device=torch.device("cpu"), compute_dtype=torch.float32, labels=LABELS
    )
    return cast(LoadedBase, base), model


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def row(label: Any, *ids: int, types: Sequence[int] | None = None) -> LabelledExample:
    kinds = None if types is None else torch.tensor(types)
    return LabelledExample(torch.tensor(ids), kinds, torch.as_tensor(label))


def test_rows_are_padded_on_the_right_with_their_types_and_a_mask() -> None:
    base, model = base_of(numbers(2, 3))
    objective = LabelledRows(LABELS)
    batch = objective.collate([row(2, 5, 6, 7, types=[0, 0, 1]), row(0, 8, types=[0])], base)
    objective.losses(base, batch, torch.tensor([0, 0]), [Share(2, Recipe())], gradient=False)
    assert {name: tensor.tolist() for name, tensor in model.given.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 0, 1], [0, 0, 0]],
    }
    assert batch.targets.tolist() == [2, 0]
    assert batch.target_examples.tolist() == [0, 1]
    assert (batch.rows, batch.tokens, batch.padded_tokens) == (2, 3, 6)


def test_a_tokenizer_without_types_has_none() -> None:
    batch = LabelledRows(LABELS).collate([row(2, 5, 6), row(1, 7)], base_of()[0])
    assert sorted(batch.inputs) == ["attention_mask", "input_ids"]


def test_of_tokens_only_those_with_a_label_are_targets() -> None:
    some: list[AnyExample] = [
        TokenLabelsExample(torch.tensor([5, 6, 7]), torch.tensor([-100, 2, -100])),
        TokenLabelsExample(torch.tensor([8, 4]), torch.tensor([0, 1])),
    ]
    logits = numbers(2, 3, 3)
    base, _ = base_of(logits)
    objective = LabelledTokens(LABELS)
    batch = objective.collate(some, base)
    assert batch.positions is not None
    assert batch.positions.tolist() == [1, 3, 4]
    assert batch.targets.tolist() == [2, 0, 1]
    assert batch.target_examples.tolist() == [0, 1, 1]
    found = objective.losses(base, batch, batch.target_examples, [Share(1, Recipe())] * 2, gradient=False)
    labels = torch.tensor([[-100, 2, -100], [0, 1, -100]])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    torch.testing.assert_close(found.losses, expected[expected != 0])
    assert torch.equal(found.answers, torch.stack([logits[0, 1], logits[1, 0], logits[1, 1]]))


SHARES = [
    Share(2, Recipe(), 0.5),
    Share(1, Recipe(loss="focal", focal_gamma=3.0), 0.25),
    Share(3, Recipe(label_smoothing=0.2), 2.0, torch.tensor([1.0, 2.0, 0.5])),
    Share(1, Recipe(loss="cross_entropy"), 1.0, torch.tensor([0.1, 3.0, 1.0])),
]
OWNERS = torch.tensor([0, 0, 1, 2, 2, 2, 3])


def options(share: Share) -> dict[str, Any]:
    return {
        "loss": share.recipe.loss or "cross_entropy",
        "focal_gamma": share.recipe.focal_gamma,
        "label_smoothing": share.recipe.label_smoothing,
        "class_weights": share.class_weights,
    }


@pytest.mark.parametrize("labels", [LABELS, SEVERAL], ids=["one class", "several labels"])
def test_trials_with_different_losses_in_one_pass_each_get_their_own(labels: Labels) -> None:
    given = [[1.0, 0, 1], [0.0, 0, 0]] if labels.multi_label else [2, 0]
    some = [row(given[number % 2], 5, 6) for number in range(7)]
    logits = numbers(7, 3).requires_grad_()
    base, _ = base_of(logits)
    objective = LabelledRows(labels)
    batch = objective.collate(some, base)
    found = objective.losses(base, batch, OWNERS, SHARES, gradient=True)
    plain = logits.detach().clone().requires_grad_()
    expected = torch.zeros(())
    for number, share in enumerate(SHARES):
        own = number == OWNERS
        losses = class_losses(plain[own], batch.targets[own], **options(share))
        expected = expected + share.weight * losses.sum()
    assert found.objective is not None
    torch.testing.assert_close(found.objective, expected)
    found.objective.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, plain.grad)
    # Whatever they minimize, what is reported is the cross-entropy.
    torch.testing.assert_close(found.losses, class_losses(logits.detach(), batch.targets))
    assert not found.losses.requires_grad


def test_scores_have_huber_or_squared_errors_in_one_pass() -> None:
    shares = [Share(2, Recipe(), 0.5), Share(2, Recipe(loss="huber", huber_delta=0.3), 1.0)]
    scores = numbers(4, 1).requires_grad_()
    base, _ = base_of(scores)
    objective = LabelledRows(None)
    batch = objective.collate([row(float(number), 5, 6) for number in range(4)], base)
    found = objective.losses(base, batch, torch.tensor([0, 0, 1, 1]), shares, gradient=True)
    wanted = torch.arange(4.0)
    squares = regression_losses(scores.squeeze(1), wanted)
    huber = F.huber_loss(scores[2:, 0], wanted[2:], reduction="sum", delta=0.3)
    assert found.objective is not None
    torch.testing.assert_close(found.objective, squares[:2].sum() * 0.5 + huber)
    torch.testing.assert_close(found.losses, squares.detach())


def test_a_share_may_have_more_targets_than_examples() -> None:
    some: list[AnyExample] = [
        TokenLabelsExample(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2])),
        TokenLabelsExample(torch.tensor([8, 4, 5]), torch.tensor([0, -100, -100])),
    ]
    logits = numbers(2, 3, 3)
    base, _ = base_of(logits)
    objective = LabelledTokens(LABELS)
    batch = objective.collate(some, base)
    shares = [Share(1, Recipe(loss="focal"), 1.0), Share(1, Recipe(), 10.0)]
    found = objective.losses(base, batch, batch.target_examples, shares, gradient=True)
    focal = class_losses(logits[0], torch.tensor([0, 1, 2]), loss="focal", focal_gamma=2.0).sum()
    other = F.cross_entropy(logits[1, :1], torch.tensor([0])) * 10
    assert found.objective is not None
    torch.testing.assert_close(found.objective, focal + other)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("none", None),
        ("balanced", [6 / (3 * 3), 6 / (3 * 2), 6 / (3 * 1)]),
        ({"yes": 5.0, "no": 0.5}, [0.5, 1.0, 5.0]),
    ],
)
def test_class_weights_follow_the_recipe_and_the_train_data(
    wanted: Any, expected: list[float] | None
) -> None:
    rows = [row(label, 5) for label in (0, 1, 0, 2, 0, 1)]
    tokens = [
        TokenLabelsExample(torch.arange(4), torch.tensor([0, -100, 1, 0])),
        TokenLabelsExample(torch.arange(4), torch.tensor([2, 0, -100, 1])),
    ]
    recipe = Recipe(class_weights=wanted)
    for found in (
        LabelledRows(LABELS).class_weights(recipe, rows),
        LabelledTokens(LABELS).class_weights(recipe, tokens),
    ):
        assert (found if found is None else found.tolist()) == (expected and pytest.approx(expected))


def test_of_several_labels_each_one_counts_as_a_target() -> None:
    rows = [row(label, 5) for label in ([1.0, 0, 1], [0.0, 0, 1], [1.0, 1, 1])]
    found = LabelledRows(SEVERAL).class_weights(Recipe(class_weights="balanced"), rows)
    assert found is not None
    assert found.tolist() == pytest.approx([6 / (3 * 2), 6 / (3 * 1), 6 / (3 * 3)])


def test_a_weight_of_an_unknown_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"'yess', which is not a label .*'yes'\?$"):
        LabelledRows(LABELS).class_weights(Recipe(class_weights={"yess": 2.0}), [row(0, 5)])


def test_scores_have_no_class_weights() -> None:
    assert LabelledRows(None).class_weights(Recipe(), [row(1.5, 5)]) is None


@pytest.mark.parametrize("orders", [[[0, 1, 2], [3, 4]], [[4, 2], [0], [3, 1]]])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "scores"])
def test_an_evaluation_does_not_depend_on_the_order_of_its_passes(
    labels: Labels | None, orders: list[list[int]]
) -> None:
    targets = torch.tensor([0, 2, 1, 0, 2]) if labels else torch.tensor([0.5, 2.0, 1.0, -1.0, 3.0])
    answers = numbers(2, 5, 3) if labels else numbers(2, 5)
    base, _ = base_of()
    objective = LabelledRows(labels)
    tally = objective.tally(2, base)
    for indices in orders:
        batch = objective.collate([row(targets[index], 5, 6) for index in indices] * 2, base)
        given = answers[:, indices].flatten(0, 1)
        losses = torch.cat([answers[one, indices].flatten(1).sum(1) for one in range(2)]) if labels else given
        tally.add(PassLosses(losses, None, given), batch, indices)
    for one, found in enumerate(tally.results()):
        assert torch.equal(found.answers, answers[one])
        assert torch.equal(found.targets, targets)
        metrics = found.metrics()
        assert metrics["eval_loss"] == pytest.approx(found.loss_sum / 5)
        if labels:
            right = (answers[one].argmax(1) == targets).float().mean()
            assert metrics["accuracy"] == pytest.approx(right.item())
        else:
            assert metrics["mse"] == pytest.approx(F.mse_loss(answers[one], targets).item())


@pytest.mark.parametrize("orders", [[[0, 1, 2]], [[2], [0, 1]], [[1, 2], [0]]])
def test_tokens_come_back_by_sentence_in_their_order(orders: list[list[int]]) -> None:
    """Entities are found in sentences, so tokens must be put together as the data has them."""
    sentences = [
        TokenLabelsExample(torch.tensor([5, 6, 7]), torch.tensor([1, -100, 2])),
        TokenLabelsExample(torch.tensor([8]), torch.tensor([0])),
        TokenLabelsExample(torch.tensor([5, 6]), torch.tensor([0, 1])),
    ]
    labels = Labels(("O", "B-place", "I-place"))
    base, _ = base_of()
    objective = LabelledTokens(labels)
    answers = {(0, 0): 1, (0, 2): 2, (1, 0): 1, (2, 0): 0, (2, 1): 0}  # the second and the last are wrong
    tally = objective.tally(2, base)
    for indices in orders:
        batch = objective.collate([sentences[index] for index in indices] * 2, base)
        assert batch.positions is not None
        sites = [divmod(int(position), batch.tokens) for position in batch.positions]
        chosen = [answers[indices[line % len(indices)], place] for line, place in sites]
        # The second adapter answers O always.
        half = len(chosen) // 2
        logits = F.one_hot(torch.tensor([*chosen[:half], *[0] * half]), 3).float()
        tally.add(PassLosses(torch.ones(len(chosen)), None, logits), batch, indices)
    first, second = tally.results()
    assert first.targets.tolist() == [1, 2, 0, 0, 1]
    assert first.answers.argmax(1).tolist() == [1, 2, 1, 0, 0]
    assert second.answers.argmax(1).tolist() == [0] * 5
    # Entities: one of two is found, and one of two found ones is there.
    assert first.metrics()["micro_f1"] == pytest.approx(0.5)
    assert first.metrics()["accuracy"] == pytest.approx(3 / 5)
    assert second.metrics()["micro_f1"] == 0.0
