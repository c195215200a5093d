"""The study of each example through REST, and its adapter in plain transformers and PEFT."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from service.cli.study_file import read_study_file
from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.acceptance.conftest import RunningService
from tests.support.checkout import ROOT

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

EXAMPLES = ROOT / "examples"
ANSWER = re.compile(r"#### (\d+:\d+)")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all examples, whose workers can import the module of one of them."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        data_roots=(EXAMPLES,),
        plugins=("my_functions",),
        port=free_port(),
        poll_seconds=0.1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(EXAMPLES / "own_functions"), prepend=os.pathsep)
        with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
            yield RunningService(settings=settings, client=client, folder=EXAMPLES, supervisor=server)


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """`examples/predict.py`, which knows nothing of Nightsweep."""
    spec = importlib.util.spec_from_file_location("predict", EXAMPLES / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_match(rows: Rows, predictions: list[str]) -> float:
    expected = [ANSWER.findall(row["completion"])[-1] for row in rows]
    found = [(ANSWER.findall(text) or [""])[-1] for text in predictions]
    return sum(a == b for a, b in zip(expected, found, strict=True)) / len(rows)


def rouge_l(rows: Rows, predictions: list[str]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(row["target"], text) for row, text in zip(rows, predictions, strict=True)]
    return sum(score["rougeL"].fmeasure for score in scores) / len(rows)


def macro_f1(rows: Rows, predictions: list[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score([row["label"] for row in rows], predictions, average="macro"))


def entity_f1(rows: Rows, predictions: list[list[str]]) -> float:
    from seqeval.metrics import f1_score

    return float(f1_score([row["labels"] for row in rows], predictions))


def spearman(rows: Rows, predictions: list[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr([row["score"] for row in rows], predictions).statistic)


def chosen_first(rows: Rows, predictions: list[tuple[float, float]]) -> float:
    return sum(chosen > rejected for chosen, rejected in predictions) / len(rows)


MEASURES = {
    "causal_lm": ("answer_match", answer_match),
    "seq2seq_lm": ("rouge_l", rouge_l),
    "sequence_classification": ("macro_f1", macro_f1),
    "token_classification": ("micro_f1", entity_f1),
    "regression": ("spearman", spearman),
    "ranking": ("pairwise_accuracy", chosen_first),
    "preference": ("reward_accuracy", chosen_first),
}
"""The objective of each example, and how it is measured of plain predictions."""


def baseline(task: str, train: Rows, rows: Rows) -> float:
    """What answers that look at no request reach: the most frequent one, or the input itself."""
    if task == "causal_lm":
        (most, _), *_ = Counter(row["completion"] for row in train).most_common()
        return answer_match(rows, [most] * len(rows))
    if task == "seq2seq_lm":
        return rouge_l(rows, [row["source"] for row in rows])
    if task == "sequence_classification":
        (most, _), *_ = Counter(row["label"] for row in train).most_common()
        return macro_f1(rows, [most] * len(rows))
    return {"token_classification": 0.0, "regression": 0.0}.get(task, 0.5)


@pytest.mark.parametrize("task", MEASURES)
def test_the_winner_of_an_example_beats_its_baseline_and_gives_its_value_in_plain_peft(
    service: RunningService, plain: ModuleType, tmp_path: Path, task: str
) -> None:
    definition = read_study_file(EXAMPLES / task / "study.yaml")
    name = definition["name"]
    service.submit(definition)
    study = service.wait(name)
    metric, measured = MEASURES[task]
    assert (study["state"], study["counts"]["completed"]) == ("completed", 3), study["reason"]
    assert study["definition"]["objective"]["metric"] == metric

    best = service.client.get(f"/v1/studies/{name}/best").json()
    with zipfile.ZipFile(io.BytesIO(service.client.get(best["adapter"]["url"]).content)) as archive:
        archive.extractall(tmp_path)
    rows = plain.eval_rows(task)
    predictor = plain.Predictor(task, tmp_path)
    examples = definition.get("evaluation", {}).get("generate", {}).get("examples", len(rows))
    value = measured(rows[:examples], [predictor.predict(row) for row in rows[:examples]])
    assert value == pytest.approx(best["value"], abs=0.03)

    train = [*map(plain.json.loads, (EXAMPLES / task / "train.jsonl").read_text().splitlines())]
    assert best["value"] > baseline(task, train, rows[:examples]) + 0.1


def annoyance(predictions: list[float], rows: Rows) -> float:
    """As `examples/own_functions` has it."""
    errors = [float(predicted) - row["score"] for predicted, row in zip(predictions, rows, strict=True)]
    return sum(max(error, -3 * error) for error in errors) / len(rows)


def test_a_loss_and_a_metric_of_ones_own_are_searched_and_measured(
    service: RunningService, plain: ModuleType, tmp_path: Path
) -> None:
    definition = read_study_file(EXAMPLES / "own_functions" / "study.yaml")
    service.submit(definition)
    study = service.wait(definition["name"])
    assert (study["state"], study["counts"]["completed"]) == ("completed", 4), study["reason"]
    trials = service.client.get(f"/v1/studies/{study['name']}/trials").json()["items"]
    assert Counter(trial["params"]["loss"] for trial in trials) == {"mse": 2, "too_dark": 2}

    best = service.client.get(f"/v1/studies/{study['name']}/best").json()
    with zipfile.ZipFile(io.BytesIO(service.client.get(best["adapter"]["url"]).content)) as archive:
        archive.extractall(tmp_path)
    rows = plain.eval_rows("regression")
    predictor = plain.Predictor("regression", tmp_path)
    assert best["value"] == pytest.approx(annoyance([predictor.predict(row) for row in rows], rows), abs=0.03)
    assert best["value"] < min(annoyance([share / 100] * len(rows), rows) for share in range(101)) - 0.1
