"""The reference pages name every key and every setting, with the defaults the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from search_spaces.definition import (
    ALGORITHMS,
    MEASURES,
    Bound,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    HubData,
    ModelSpec,
    ObjectiveSpec,
    RangeTestSpec,
    RepeatsSpec,
    ResourcesSpec,
    SearchSpec,
    StudyDefinition,
    WarmStartSpec,
)
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.parsing.document import parse_definition
from search_spaces.pruning.specs import PRUNING_SPECS
from search_spaces.recipe import RECIPE_FIELDS, Recipe
from service.analysis import diagnosis
from service.coordinator.policy.retries import COUNTED
from service.definitions.syntax import parse_yaml
from service.settings import Settings
from service.states import LossCause
from tests.support.checkout import ROOT

DEFINITION = (ROOT / "docs/reference/definition.md").read_text()
SETTINGS = (ROOT / "docs/reference/settings.md").read_text()
REPORT = (ROOT / "docs/how-to/read-a-report.md").read_text()


def documented(text: str) -> set[str]:
    """Every word in code quotes, and the last part of dotted ones."""
    quoted = {word for quote in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w.]+", quote)}
    return quoted | {word.rsplit(".", 1)[-1] for word in quoted}


MODELS: list[type[BaseModel]] = [
    StudyDefinition,
    ModelSpec,
    DataSpec,
    HubData,
    SearchSpec,
    Recipe,
    ObjectiveSpec,
    EvaluationSpec,
    BudgetSpec,
    ResourcesSpec,
    RangeTestSpec,
    Float,
    Int,
    Choice,
    Bound,
    WarmStartSpec,
    RepeatsSpec,
    *PRUNING_SPECS.values(),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_of_a_definition_is_documented(model: type[BaseModel]) -> None:
    # A field named after a Python keyword has its key as an alias.
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys - documented(DEFINITION) == set()


@pytest.mark.parametrize(
    "names", [ALGORITHMS, MEASURES, RECIPE_FIELDS, tuple(PRUNING_SPECS)], ids=lambda n: n[0]
)
def test_every_name_that_a_definition_may_hold_is_documented(names: tuple[str, ...]) -> None:
    assert set(names) - documented(DEFINITION) == set()


def settings_rows() -> Iterator[tuple[str, str]]:
    for line in SETTINGS.splitlines():
        if match := re.match(r"\| `(NIGHTSWEEP_\w+)` \| (.*?) \|", line):
            yield match[1], match[2]


def test_every_setting_is_documented_with_its_default(tmp_path: Path) -> None:
    defaults = Settings(home=tmp_path)
    expected = {}
    for name in Settings.model_fields:
        value = getattr(defaults, name)
        expected[f"NIGHTSWEEP_{name.upper()}"] = value
    rows = dict(settings_rows())
    clients = {"NIGHTSWEEP_SERVER"}
    assert set(rows) == set(expected) | clients
    for variable, value in expected.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert rows[variable] == f"{value:g}" if value < 1e5 else str(value), variable


def examples_in(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/tasks.md"])
def test_every_yaml_example_is_a_definition_that_is_accepted(page: str) -> None:
    examples = examples_in(page)
    assert examples
    for example in examples:
        assert parse_definition(parse_yaml(example.encode())).name


def test_every_yaml_example_of_the_reference_makes_a_definition_that_is_accepted() -> None:
    examples = examples_in("docs/reference/definition.md")
    assert examples
    rest = {"name": "tone", "model": {"id": "org/base"}, "data": {"train": "a.jsonl", "eval": "b.jsonl"}}
    for example in examples:
        assert parse_definition(rest | parse_yaml(example.encode())).name == "tone"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*/study.yaml")), ids=lambda p: p.parent.name
)
def test_every_study_in_the_examples_is_accepted(path: Path) -> None:
    assert parse_definition(parse_yaml(path.read_bytes())).name


IN_WORDS = {0.1: "a tenth", 0.2: "first fifth", 0.25: "a quarter", 0.5: "half"}
THRESHOLDS = {
    "overfitting": (
        f"rose by more than {diagnosis.RISE:.0%} ",
        f"over at least {diagnosis.OVERFIT_RUNGS} rungs",
    ),
    "learning_rate_too_high": (
        f"rises of more than {diagnosis.RISE:.0%} ",
        f"at least {diagnosis.OSCILLATION_SHARE:.0%} of the ground",
        f"({diagnosis.TRAIN_OSCILLATION_SHARE:.0%} for the train loss)",
        f"ahead by more than {diagnosis.RISE:.0%} of the loss",
        f"by {IN_WORDS[diagnosis.LAG]} of what that one had gained",
    ),
    "learning_rate_too_low": (
        f"the last {diagnosis.LATE_SHARE:.0%} of the rate-weighted examples",
        f"at least {IN_WORDS[diagnosis.TOO_LOW_RATIO]} as steep",
    ),
    "under_trained": (f"at least {IN_WORDS[diagnosis.UNDER_TRAINED_RATIO]} as steep",),
    "plateaued_early": (
        f"less than {diagnosis.PLATEAU_SHARE:.0%} off the loss",
        f"less than {diagnosis.PLATEAU_SHARE:.0%} of the whole fall",
    ),
    "not_enough_rungs": (
        f"fewer than {diagnosis.MIN_RUNGS} evaluations",
        f"less than {IN_WORDS[diagnosis.MIN_SHARE]} of the training",
        f"after the {IN_WORDS[diagnosis.EARLY_SHARE]} of",
    ),
}
"""What each rule on the page says, in the code's own numbers."""


def test_every_verdict_is_documented_with_the_thresholds_it_has() -> None:
    rules = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", REPORT, flags=re.MULTILINE))
    assert set(rules) | {"diverged"} == set(diagnosis.Verdict)
    assert set(THRESHOLDS) == set(rules)
    for verdict, phrases in THRESHOLDS.items():
        # The page writes "2 %", Python "2%".
        missing = [p for p in phrases if p.replace("%", " %") not in rules[verdict]]
        assert not missing, verdict


def test_every_cause_of_a_loss_is_documented_with_whether_it_counts() -> None:
    text = (ROOT / "docs/reference/attempts.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| (yes|no) \|", text, re.MULTILINE)
    assert dict(rows) == {str(cause): "yes" if cause in COUNTED else "no" for cause in LossCause}
