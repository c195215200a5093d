"""Trials with losses of the study's own, through orders: their module, their mates, and how they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec
from search_spaces.recipe import Recipe
from tests.support.workers.models import build_tiny_bert
from tests.support.workers.packs import Recorder, assert_equal_trials
from tests.support.workers.trials import trial_order
from workers.contract import OutcomeStatus, RateSweep, Report, TrialOrder, TrialStarted

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PLUGIN = "tests.unit.workers.pack.test_own_losses"
WORDS = ("lamp", "kitchen", "bedroom", "light", "fox")


def under(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A sound one."""
    error = answers - targets
    return torch.where(error < 0, 3.0, 1.0) * error**2


def raises(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raise ValueError("no such price")


def mean(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return under(answers, targets).mean()


def constant(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(targets)


def nan(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return under(answers, targets) * torch.nan


def bounded(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Infinite of large scores."""
    return torch.where(answers.abs() > 5, torch.inf, under(answers, targets))


def sums(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of one class and of several."""
    if not targets.is_floating_point():
        targets = torch.nn.functional.one_hot(targets, answers.shape[1]).float()
    return (answers.softmax(1) - targets).square().sum(1)


LOSSES = {name: f"{PLUGIN}:{name}" for name in ("under", "raises", "mean", "constant", "nan", "bounded")}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bert(tmp_path_factory.mktemp("bert"))


def ordered(
    folder: Path, base: Path, loss: str | None, attempt_id: int = 1, *, varied: Any = ("loss",), **fields: Any
) -> TrialOrder:
    """Two steps over 16 rows with a score."""
    file = folder / "rows.jsonl"
    rows = [{"text": f"turn on the {WORDS[n % 5]}", "score": n / 4} for n in range(16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    order = trial_order(
        folder,
        base,
        attempt_id=attempt_id,
        quantization="none",
        recipe=Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, loss=loss, seed=attempt_id, **fields),
        data=DataSpec(train=str(file), eval=str(file), max_length=48),
        metric="mse",
        divergence_factor=100.0,
    )
    limits = LoadingLimits(plugins=(PLUGIN,))
    return replace(order, task="regression", losses=LOSSES, limits=limits, varied=varied)


def test_trials_of_one_study_differ_by_their_loss_and_report_the_plain_one(
    tmp_path: Path, base_dir: Path
) -> None:
    orders = [ordered(tmp_path, base_dir, loss, number) for number, loss in enumerate((None, "under"), 1)]
    together = Recorder(slots=2)
    together.run(*orders)
    for order in orders:
        assert_equal_trials(together, order)
        (report,) = together.of(order.attempt_id, Report)
        assert report.metrics["eval_loss"] == pytest.approx(report.metrics["mse"])


@pytest.mark.parametrize(
    ("loss", "status", "words"),
    [
        ("raises", OutcomeStatus.FAILED, "The loss raises of {} raised ValueError: no such price."),
        ("mean", OutcomeStatus.FAILED, "The loss mean of {} returned float32 [] on cpu; it must return one"),
        ("constant", OutcomeStatus.FAILED, "The loss constant of {} returned values from which no gradient"),
        (
            "nan",
            OutcomeStatus.DIVERGED,
            "Diverged in step 1 of 2, after 0 training examples, at ",
        ),
    ],
)
def test_a_loss_that_goes_wrong_ends_its_trial_and_no_other(
    tmp_path: Path, base_dir: Path, loss: str, status: OutcomeStatus, words: str
) -> None:
    mate, bad = ordered(tmp_path, base_dir, "under"), ordered(tmp_path, base_dir, loss, 2)
    together = Recorder(slots=2)
    together.run(mate, bad)  # what goes wrong does so in a pass that both share
    outcome = together.outcomes()[2]
    assert (outcome.status, outcome.fatal_to_study) == (status, False)
    assert outcome.reason.startswith(words.format(LOSSES[loss]))
    assert f"loss {loss} of {LOSSES[loss]}" in outcome.reason
    assert len(together.of(2, TrialStarted)) == 1
    assert_equal_trials(together, mate)


@pytest.mark.parametrize("loss", ["raises", "mean", "constant", "nan"])
def test_the_loss_of_all_trials_ends_the_study_with_the_first(
    tmp_path: Path, base_dir: Path, loss: str
) -> None:
    recorder = Recorder()
    outcome = recorder.outcome(ordered(tmp_path, base_dir, loss, varied=("learning_rate",)))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert outcome.reason.startswith(f"The loss {loss} of {LOSSES[loss]} ")
    assert outcome.steps == 0


def test_a_searched_loss_that_goes_wrong_is_one_trials_fault(tmp_path: Path, base_dir: Path) -> None:
    recorder = Recorder()
    outcome = recorder.outcome(ordered(tmp_path, base_dir, "raises"))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, False)
    assert recorder.outcome(ordered(tmp_path, base_dir, "mse", 2)).status is OutcomeStatus.COMPLETED


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("os:getcwd", "The loss under is from the module os, which NIGHTSWEEP_PLUGINS does not name."),
        (f"{PLUGIN}:over", f"The loss under of {PLUGIN}:over cannot be loaded: AttributeError: "),
        (f"{PLUGIN}:LOSSES", f"The loss under of {PLUGIN}:LOSSES is not a function."),
    ],
)
def test_a_function_that_cannot_be_used_ends_the_study_whatever_the_trials_loss_is(
    tmp_path: Path, base_dir: Path, path: str, words: str
) -> None:
    outcome = Recorder().outcome(replace(ordered(tmp_path, base_dir, "mse"), losses={"under": path}))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert outcome.reason.startswith(words)


def test_a_range_test_ends_where_the_loss_is_no_longer_finite(tmp_path: Path, base_dir: Path) -> None:
    sweep = RateSweep(first=1e-4, last=1e4, steps=60)
    order = replace(ordered(tmp_path, base_dir, "bounded", max_grad_norm=1e6), rate_sweep=sweep)
    outcome = Recorder().outcome(order)
    assert outcome.status is OutcomeStatus.COMPLETED
    assert f"the loss bounded of {LOSSES['bounded']} has a value of inf at answers" in outcome.reason
    assert 0 < len(outcome.rate_curve) < 60


def test_labels_are_weighed_by_class_unless_a_row_has_several(tmp_path: Path, base_dir: Path) -> None:
    order = ordered(tmp_path, base_dir, "sums", class_weights="balanced", varied=("learning_rate",))
    file = tmp_path / "labels.jsonl"
    several = [{"text": f"the {word}", "label": [word, "thing"]} for word in WORDS]
    file.write_text("".join(json.dumps(row) + "\n" for row in several))
    order = replace(
        order,
        task="sequence_classification",
        data=DataSpec(train=str(file), eval=str(file), max_length=48),
        losses={"sums": f"{PLUGIN}:sums"},
        objective=order.objective.model_copy(update={"metric": "macro_f1", "direction": "maximize"}),
    )
    outcome = Recorder().outcome(order)
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert "class_weights cannot be used with sums, a loss of the study's own" in outcome.reason
    plain = order.recipe.model_copy(update={"class_weights": "none"})
    assert Recorder().outcome(replace(order, recipe=plain)).status is OutcomeStatus.COMPLETED
    file.write_text("".join(json.dumps(row | {"label": row["label"][0]}) + "\n" for row in several))
    assert Recorder().outcome(order).status is OutcomeStatus.COMPLETED
