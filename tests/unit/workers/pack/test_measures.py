"""Metrics of generated text, and of a study's own, in the reports of trials that share a pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec, GenerateSpec
from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder, alone, assert_equal_trials
from tests.support.workers.trials import data_spec, trial_order
from workers.contract import OutcomeStatus, Report, TrialOrder
from workers.data.datasets import TokenizedData
from workers.data.labels import Labels
from workers.errors import DataError, WorkerError
from workers.pack import measures
from workers.pack.measures import Measures, read_measures
from workers.plugins import EvalAnswers, OwnMetric
from workers.training import shared_pass
from workers.training.generation import generate
from workers.training.objectives.labels import Answers
from workers.training.objectives.language import Totals
from workers.training.objectives.pairs import PairAnswers
from workers.training.overfitting import OverfitWatch

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

GENERATED = {"exact_match", "rouge_l", "bleu"}
OF_THE_TASK = {"eval_loss", "perplexity", "accuracy"}
PLUGIN = "tests.unit.workers.pack.test_measures"


def ordered(
    folder: Path,
    base: Path,
    *,
    metric: str = "rouge_l",
    direction: str = "maximize",
    attempt_id: int = 1,
    overfit_rungs: int | None = None,
    data: DataSpec | None = None,
    **generate: Any,
) -> TrialOrder:
    """Three steps, a rung at each, and four new tokens for each of four rows of eval data."""
    order = trial_order(
        folder,
        base,
        attempt_id=attempt_id,
        recipe=Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, lora_dropout=0.1, seed=attempt_id),
        data=data or data_spec(folder, eval_rows=4),
        quantization="none",
        metric=metric,
        direction=direction,
        every_examples=8,
    )
    spec = GenerateSpec.model_validate({"max_new_tokens": 4, **generate})
    update = {"generate": spec, "overfit_rungs": overfit_rungs}
    return replace(order, evaluation=order.evaluation.model_copy(update=update))


def test_packed_trials_have_the_generated_metrics_that_each_has_alone(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    orders = [ordered(tmp_path, tiny_base_dir, attempt_id=number) for number in (1, 2)]
    together = Recorder(slots=2)
    together.run(*orders)
    for order in orders:
        assert_equal_trials(together, order)
        reports = together.of(order.attempt_id, Report)
        expected = [OF_THE_TASK, OF_THE_TASK, OF_THE_TASK | GENERATED]
        assert [set(report.metrics) for report in reports] == expected


def test_without_the_objective_no_rung_is_the_best(tmp_path: Path, tiny_base_dir: Path) -> None:
    recorder = Recorder()
    outcome = recorder.outcome(ordered(tmp_path, tiny_base_dir))
    reports = recorder.of(1, Report)
    assert [report.is_best for report in reports] == [False, False, True]
    assert (outcome.status, outcome.best_rung) == (OutcomeStatus.COMPLETED, 24)
    assert outcome.value == reports[-1].metrics["rouge_l"]
    assert outcome.final_metrics == reports[-1].metrics


def test_a_constraint_on_a_generated_metric_leaves_the_rung_that_has_it_as_the_best(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    order = ordered(tmp_path, tiny_base_dir, metric="eval_loss", direction="minimize")
    recorder = Recorder()
    outcome = recorder.outcome(replace(order, constrained=("bleu",)))
    assert [report.is_best for report in recorder.of(1, Report)] == [False, False, True]
    assert "bleu" in outcome.metrics


def test_a_trial_that_ends_early_because_it_overfits_has_its_generated_objective(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OverfitWatch, "overfits", property(lambda self: self._last is not None))
    monkeypatch.setattr(OverfitWatch, "in_words", lambda self: "it does")
    recorder = Recorder()
    outcome = recorder.outcome(ordered(tmp_path, tiny_base_dir, overfit_rungs=1))
    assert (outcome.status, outcome.best_rung) == (OutcomeStatus.COMPLETED, 8)
    assert "overfits" in outcome.reason
    assert [set(report.metrics) for report in recorder.of(1, Report)] == [OF_THE_TASK | GENERATED]


def test_a_trial_that_is_resumed_comes_to_the_same_metrics(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = ordered(tmp_path, tiny_base_dir, when="rungs")
    whole = alone(order)
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 2)
    later = replace(
        order,
        attempt_id=2,
        artifact_dir=f"{order.artifact_dir}-later",
        resume_from=(f"{order.artifact_dir}/checkpoint",),
    )
    resumed = Recorder()
    outcome = resumed.outcome(later)
    expected, reports = whole.of(1, Report), resumed.of(2, Report)
    assert [report.metrics for report in reports] == [report.metrics for report in expected]
    assert [set(report.metrics) for report in reports] == [OF_THE_TASK | GENERATED] * 3
    assert outcome.value == whole.outcomes()[1].value


def test_generation_that_does_not_fit_goes_on_with_fewer_tokens_at_once(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []

    def limited(*args: Any, token_budget: int, **options: Any) -> Any:
        budgets.append(token_budget)
        if token_budget > 100:
            raise torch.OutOfMemoryError("the test's device is full")
        return generate(*args, token_budget=token_budget, **options)

    expected = alone(ordered(tmp_path, tiny_base_dir)).outcomes()[1]
    monkeypatch.setattr(shared_pass, "generate", limited)
    outcome = Recorder().outcome(ordered(tmp_path, tiny_base_dir))
    assert outcome.metrics == pytest.approx(expected.metrics, rel=1e-4)
    assert budgets[0] > 100 >= budgets[-1]
    assert outcome.eval_seconds > 0


def test_one_text_that_does_not_fit_ends_the_trial_as_out_of_memory(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("the test's device is full")

    monkeypatch.setattr(shared_pass, "generate", full)
    outcome = Recorder().outcome(ordered(tmp_path, tiny_base_dir))
    assert outcome.status is OutcomeStatus.OUT_OF_MEMORY
    assert "generating one text of" in outcome.reason


@pytest.mark.parametrize(
    ("format_", "fields", "words"),
    [
        ("auto", {"answer_pattern": "#### (.*)"}, "finds no answer in any reference of the eval data"),
        ("auto", {"answer_pattern": "("}, "is not a valid regular expression of RE2"),
        ("text", {}, "Eval example 1 of "),
    ],
)
def test_data_without_prompts_or_answers_ends_the_study_once(
    tmp_path: Path, tiny_base_dir: Path, format_: str, fields: dict[str, str], words: str
) -> None:
    data = data_spec(tmp_path, eval_rows=4)
    if format_ == "text":
        columns = {"text": "completion"}
        data = DataSpec.model_validate({**data.model_dump(), "format": "text", "columns": columns})
    outcome = Recorder().outcome(ordered(tmp_path, tiny_base_dir, metric="exact_match", data=data, **fields))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert words in outcome.reason


@pytest.fixture
def evaluated(tiny_base_dir: Path, tmp_path: Path) -> tuple[TokenizedData, Any]:
    """Eval data, and the base that it was read with."""
    from workers.pack.loaded import LoadedStudies

    loaded = LoadedStudies(torch.device("cpu")).load(ordered(tmp_path, tiny_base_dir), ())
    return loaded.evaluation, loaded.base.host.base


def test_which_metrics_are_generated(
    evaluated: tuple[TokenizedData, Any], tmp_path: Path, tiny_base_dir: Path
) -> None:
    def wanted(metric: str, constrained: Sequence[str] = (), **fields: Any) -> tuple[str, ...]:
        order = ordered(tmp_path, tiny_base_dir, metric=metric, direction=None, **fields)  # type: ignore[arg-type]
        order = replace(order, constrained=tuple(constrained))
        if not fields:
            order = replace(order, evaluation=order.evaluation.model_copy(update={"generate": None}))
        texts = read_measures(order, *evaluated).texts
        return () if texts is None else texts.wanted

    assert wanted("eval_loss") == ()
    assert wanted("bleu") == ("bleu",)
    assert wanted("eval_loss", ["rouge_l"]) == ("rouge_l",)
    assert wanted("eval_loss", when="end") == ("exact_match", "rouge_l", "bleu")
    everything = ("exact_match", "rouge_l", "bleu", "answer_match")
    assert wanted("eval_loss", answer_pattern='"state": "(.*?)"') == everything


def test_only_the_first_examples_are_generated_from(
    evaluated: tuple[TokenizedData, Any], tmp_path: Path, tiny_base_dir: Path
) -> None:
    texts = read_measures(ordered(tmp_path, tiny_base_dir, examples=3), *evaluated).texts
    assert texts is not None
    assert len(texts.prompts) == 3
    assert texts.references[0].startswith('{"device": ')


def test_letters_that_rouge_does_not_know_leave_it_out_unless_it_is_named(
    evaluated: tuple[TokenizedData, Any],
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        measures, "prompt_of", lambda example, tokenizer: SimpleNamespace(reference="おはよう")
    )
    texts = read_measures(ordered(tmp_path, tiny_base_dir, metric="bleu"), *evaluated).texts
    assert texts is not None
    assert texts.wanted == ("exact_match", "bleu")
    with pytest.raises(WorkerError, match="rouge_l cannot be measured"):
        read_measures(ordered(tmp_path, tiny_base_dir, metric="rouge_l"), *evaluated)


def profit(eval_answers: EvalAnswers) -> float:
    """A metric of a study's own, as a plugin has it."""
    assert eval_answers.texts is not None
    assert eval_answers.references is not None
    return len(eval_answers.texts) + len(eval_answers.references) + eval_answers.metrics["rouge_l"]


def odd(eval_answers: EvalAnswers) -> float:
    return float("nan")


def test_a_metric_of_the_studys_own_is_an_objective(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = ordered(tmp_path, tiny_base_dir, metric="profit")
    own = {"metrics": {"profit": f"{PLUGIN}:profit"}, "limits": LoadingLimits(plugins=(PLUGIN,))}
    recorder = Recorder()
    outcome = recorder.outcome(replace(order, **own))
    metrics = recorder.of(1, Report)[-1].metrics
    assert outcome.value == metrics["profit"] == 8 + metrics["rouge_l"]


def test_a_metric_that_goes_wrong_ends_its_trial_and_no_other(tmp_path: Path, tiny_base_dir: Path) -> None:
    first, second = (ordered(tmp_path, tiny_base_dir, attempt_id=number) for number in (1, 2))
    bad = {"metrics": {"odd": f"{PLUGIN}:odd"}, "limits": LoadingLimits(plugins=(PLUGIN,))}
    recorder = Recorder(slots=2)
    recorder.run(replace(first, **bad), second)
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, False)
    assert outcome.reason == (f"The metric odd of {PLUGIN}:odd returned nan; it must return a finite number.")
    assert recorder.outcomes()[2].status is OutcomeStatus.COMPLETED


def test_a_module_that_is_not_named_ends_the_study(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = replace(ordered(tmp_path, tiny_base_dir), metrics={"profit": f"{PLUGIN}:profit"})
    outcome = Recorder().outcome(order)
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert f"from the module {PLUGIN}, which NIGHTSWEEP_PLUGINS does not name" in outcome.reason


def test_what_a_metric_sees_of_each_task(tmp_path: Path) -> None:
    seen: list[EvalAnswers] = []

    def note(eval_answers: EvalAnswers) -> float:
        seen.append(eval_answers)
        return 1

    own = Measures(own=(OwnMetric("note", "mine:note", note),))
    order = trial_order(tmp_path, tmp_path)
    losses, logits = torch.tensor([0.5, 1.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    names = Labels(("no", "yes"))
    evaluations = [
        Totals(loss_sum=2.0, correct=1, tokens=2),
        Answers(losses, logits, torch.tensor([0, 1]), names),
        Answers(losses, logits, torch.tensor([0, 1]), names, torch.tensor([3, 3])),
        Answers(losses, logits[:, 0], torch.tensor([2.5, 0.0]), None),
        PairAnswers(losses, torch.tensor([1.0, -1.0]), "pairwise_accuracy"),
    ]
    for evaluation in evaluations:
        metrics = own.metrics(evaluation, order, None)
        assert metrics == {**evaluation.metrics(), "note": 1.0}
    language, classes, tokens, scores, pairs = seen
    assert (language.answers, language.targets, language.texts) == (None, None, None)
    assert classes.labels == ("no", "yes")
    assert classes.answers is not None
    assert classes.answers.tolist() == [[2.0, 0.0], [0.0, 1.0]]
    assert tokens.rows is not None
    assert tokens.rows.tolist() == [3, 3]
    assert scores.targets is not None
    assert scores.targets.tolist() == [2.5, 0.0]
    assert pairs.answers is not None
    assert pairs.answers.tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("metric", "labels", "why"),
    [
        ("roc_auc", Labels(("a", "b", "c")), "is for two labels; the train data has 3"),
        ("roc_auc", Labels(("a", "b"), multi_label=True), "is for rows of one label"),
        ("mcc", Labels(("a", "b"), multi_label=True), "is for rows of one label"),
    ],
)
def test_a_metric_that_the_labels_do_not_allow_is_refused_before_the_first_trial(
    tmp_path: Path, tiny_base_dir: Path, metric: str, labels: Labels, why: str
) -> None:
    order = replace(ordered(tmp_path, tiny_base_dir, metric=metric), task="sequence_classification")
    base: Any = SimpleNamespace(labels=labels)
    with pytest.raises(DataError, match=f"^The metric {metric} {why}"):
        read_measures(order, TokenizedData((), "sequence_classification", 0, 0, 0, 1, 1), base)
