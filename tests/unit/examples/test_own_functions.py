"""The example of a loss and a metric of one's own, loaded as a worker loads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.cli.study_file import read_study_file
from tests.support.checkout import ROOT
from workers.errors import WorkerError
from workers.plugins import EvalAnswers, load_losses, load_metrics
from workers.training.objectives.own_losses import values_and_slopes

FOLDER = ROOT / "examples" / "own_functions"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def test_the_study_names_functions_of_the_module_that_is_beside_it() -> None:
    definition = read_study_file(FOLDER / "study.yaml")
    plugins = [path.stem for path in FOLDER.glob("*.py")]
    assert list(load_losses(definition["losses"], plugins)) == ["too_dark"]
    assert [metric.name for metric in load_metrics(definition["metrics"], plugins)] == ["annoyance"]


def test_too_dark_counts_three_times() -> None:
    loss = load_losses({"too_dark": "my_functions:too_dark"}, ["my_functions"])["too_dark"]
    values, slopes = values_and_slopes(loss, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    assert (values.tolist(), slopes.tolist()) == ([0.75, 0.25], [-3.0, 1.0])
    (metric,) = load_metrics({"annoyance": "my_functions:annoyance"}, ["my_functions"])
    scores = {"answers": np.array([0.5, 0.5]), "targets": np.array([1.0, 0.0])}
    assert metric.measure(EvalAnswers(task="regression", metrics={}, **scores)) == (1.5 + 0.5) / 2


def test_of_another_task_the_metric_says_what_it_is_for() -> None:
    (metric,) = load_metrics({"annoyance": "my_functions:annoyance"}, ["my_functions"])
    with pytest.raises(WorkerError, match="annoyance of my_functions:annoyance raised ValueError"):
        metric.measure(EvalAnswers(task="causal_lm", metrics={"eval_loss": 1.0}))
