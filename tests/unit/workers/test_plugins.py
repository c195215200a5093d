"""Metrics and losses of a study's own: what may be loaded, and what metrics may return."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.errors import PluginError, WorkerError
from workers.plugins import EvalAnswers, OwnMetric, load_losses, load_metrics

ANSWERS = EvalAnswers(task="regression", metrics={"eval_loss": 0.5})


def returning(value: Any) -> OwnMetric:
    return OwnMetric("profit", "mine:profit", lambda _: value)


@pytest.mark.parametrize("value", [1, 1.0, True, np.float32(1), np.float64(1), np.int64(1)])
def test_a_number_of_whatever_kind_is_taken(value: Any) -> None:
    measured = returning(value).measure(ANSWERS)
    assert (type(measured), measured) == (float, 1.0)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("1.0", "an object of type str"),
        (None, "an object of type NoneType"),
        (np.ones(2), "an object of type ndarray"),
    ],
)
def test_anything_else_names_the_function(value: Any, what: str) -> None:
    with pytest.raises(WorkerError) as caught:
        returning(value).measure(ANSWERS)
    assert str(caught.value) == (
        f"The metric profit of mine:profit returned {what}; it must return a finite number."
    )


def test_what_it_raises_is_said_with_its_name() -> None:
    def broken(_: EvalAnswers) -> float:
        raise KeyError("price")

    with pytest.raises(WorkerError) as caught:
        OwnMetric("profit", "mine:profit", broken).measure(ANSWERS)
    assert str(caught.value) == "The metric profit of mine:profit raised KeyError: 'price'."


def test_only_modules_that_are_named_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text("RATE = 2\ndef profit(eval_answers):\n    return RATE\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = "plugin_of_a_test:profit"
    with pytest.raises(PluginError, match="which NIGHTSWEEP_PLUGINS does not name"):
        load_metrics({"profit": path}, ("plugin_of_a", "plugin_of_a_test.more"))
    assert "plugin_of_a_test" not in sys.modules
    (metric,) = load_metrics({"profit": path}, ("other", "plugin_of_a_test"))
    assert (metric.name, metric.path, metric.measure(ANSWERS)) == ("profit", path, 2.0)
    with pytest.raises(PluginError, match="loss of plugin_of_a_test:loss cannot be loaded: AttributeError"):
        load_metrics({"loss": "plugin_of_a_test:loss"}, ("plugin_of_a_test",))
    with pytest.raises(PluginError, match="is not a function"):
        load_metrics({"rate": "plugin_of_a_test:RATE"}, ("plugin_of_a_test",))
    with pytest.raises(PluginError, match="ModuleNotFoundError"):
        load_metrics({"profit": "plugin_not_there:profit"}, ("plugin_not_there",))


def test_losses_are_loaded_as_metrics_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses_of_a_test.py").write_text("def under(answers, targets): return answers\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = "losses_of_a_test:under"
    found = load_losses({"under": path}, ("losses_of_a_test",))
    assert [(name, str(loss)) for name, loss in found.items()] == [("under", f"loss under of {path}")]
    with pytest.raises(PluginError, match="The loss under is from the module losses_of_a_test, which"):
        load_losses({"under": path}, ())
    with pytest.raises(PluginError, match="The loss over of losses_of_a_test:over cannot be loaded"):
        load_losses({"over": "losses_of_a_test:over"}, ("losses_of_a_test",))


def test_the_module_that_plugins_import_from_is_light() -> None:
    code = "import sys, workers.plugins; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
