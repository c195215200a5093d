"""The example of a metric of one's own, loaded as a worker loads it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.checkout import ROOT
from workers.errors import WorkerError
from workers.plugins import EvalAnswers, OwnMetric, load_metrics

PATH = "my_metrics:minutes_saved"


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> OwnMetric:
    monkeypatch.syspath_prepend(ROOT / "examples" / "own_metric")
    (loaded,) = load_metrics({"minutes_saved": PATH}, ["my_metrics"])
    return loaded


def test_a_missed_outage_costs_more_than_another_mistake(metric: OwnMetric) -> None:
    logits = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float32)
    seen = EvalAnswers(
        task="sequence_classification",
        metrics={"accuracy": 0.5},
        labels=("billing", "outage", "other"),
        answers=logits,
        targets=np.array([0, 1, 0, 1]),
    )
    assert metric.measure(seen) == (1 + 1 - 5 - 60) / 4


def test_of_another_task_it_says_what_it_is_for(metric: OwnMetric) -> None:
    with pytest.raises(
        WorkerError, match=f"minutes_saved of {PATH} raised ValueError: minutes_saved is for a"
    ):
        metric.measure(EvalAnswers(task="causal_lm", metrics={"eval_loss": 1.0}))
