"""What a task demands of data, recipe, metrics and generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import DATA_FIELDS, StudyDefinition, build_recipe
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.recipe import TASK_FIELDS
from search_spaces.tasks import DIRECTIONS, METRICS, TASKS, Loss, Task
from tests.support.search_spaces.spaces import DOCUMENT

FaultsOf = Callable[[Any], dict[str, Fault]]
FIXED: dict[str, Any] = {
    "focal_gamma": 1.0,
    "huber_delta": 0.5,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "head_learning_rate_ratio": 2.0,
    "preference_beta": 0.2,
    "simpo_gamma": 0.1,
}
LOSSES: list[Loss] = list(dict.fromkeys(loss for spec in TASKS.values() for loss in spec.losses))
PLAIN_SPACE = DOCUMENT["search"]["space"]


def study(task: str = "causal_lm", **sections: Any) -> dict[str, Any]:
    return DOCUMENT | {"task": task} | sections


def data(**changes: Any) -> dict[str, Any]:
    return {"train": "train.csv", "eval": "eval.csv"} | changes


def searching(**space: Any) -> dict[str, Any]:
    return DOCUMENT["search"] | {"space": PLAIN_SPACE | space}


def accepted_again(document: dict[str, Any]) -> StudyDefinition:
    """The definition, which is also what was stored of it."""
    definition = parse_definition(document)
    stored = json.loads(json.dumps(definition.model_dump(mode="json")))
    assert StudyDefinition.model_validate(stored) == definition
    assert parse_definition(stored) == definition
    return definition


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_accepted_with_nothing_said_of_it(task: Task) -> None:
    definition = accepted_again(study(task))
    metric = TASKS[task].default_metric
    assert (definition.objective.metric, definition.objective.direction) == (metric, DIRECTIONS[metric])
    assert build_recipe(definition, {}).loss_of(task) == TASKS[task].losses[0]
    keys = {"header", "dropout", "generate", "metrics"}
    stored = definition.model_dump(mode="json")
    assert not keys & {*stored, *stored["data"], *stored["model"], *stored["evaluation"]}


@given(st.sampled_from(list(TASKS)), st.sampled_from(METRICS))
def test_a_metric_is_accepted_with_its_tasks_alone(task: Task, metric: str) -> None:
    evaluation = {"generate": {"answer_pattern": "x"}} if TASKS[task].generated else {}
    document = study(task, objective={"metric": metric}, evaluation=evaluation)
    if metric in TASKS[task].objectives:
        assert accepted_again(document).objective.direction == DIRECTIONS[metric]
    else:
        with pytest.raises(InvalidDefinition) as caught:
            parse_definition(document)
        [fault] = caught.value.faults
        assert (fault.path, fault.message) == ("objective.metric", f"is not a metric of the task {task}")
        assert fault.allowed == ", ".join(TASKS[task].objectives)


@given(st.sampled_from(list(TASKS)), st.sampled_from(sorted(FIXED)))
def test_a_field_is_accepted_with_its_tasks_alone(task: Task, name: str) -> None:
    document = study(task, recipe={name: FIXED[name]})
    if task in TASK_FIELDS[name]:
        assert accepted_again(document).recipe == {name: FIXED[name]}
    else:
        with pytest.raises(InvalidDefinition) as caught:
            parse_definition(document)
        [fault] = caught.value.faults
        assert fault.path == f"recipe.{name}"
        assert all(other in fault.message for other in (*TASK_FIELDS[name], task))


@given(st.sampled_from(list(TASKS)), st.sampled_from(LOSSES), st.booleans())
def test_a_loss_is_accepted_with_its_tasks_alone(task: Task, loss: Loss, searched: bool) -> None:
    given_ = {"search": searching(loss={"choices": [loss]})} if searched else {"recipe": {"loss": loss}}
    document = study(task, **given_)
    if loss in TASKS[task].losses:
        accepted_again(document)
    else:
        with pytest.raises(InvalidDefinition) as caught:
            parse_definition(document)
        [fault] = caught.value.faults
        assert fault.path == ("search.space.loss.choices.0" if searched else "recipe.loss")
        assert fault.message.startswith("is a loss of ")
        assert fault.allowed == ", ".join(TASKS[task].losses)


@given(st.sampled_from(list(TASKS)), st.sampled_from(DATA_FIELDS))
def test_a_column_is_of_a_field_of_the_task(task: Task, field: str) -> None:
    document = study(task, data=data(columns={field: "there"}))
    if field in TASKS[task].fields:
        assert accepted_again(document).data.columns == {field: "there"}
    else:
        with pytest.raises(InvalidDefinition) as caught:
            parse_definition(document)
        [fault] = caught.value.faults
        assert fault.message == f"is not a field of the task {task}"
        assert (fault.path, fault.allowed) == (f"data.columns.{field}", ", ".join(TASKS[task].fields))


POSITIONS = {"text": 5, "text_pair": "6", "score": 4}


@pytest.mark.parametrize(
    "sections",
    [
        {"task": "regression", "data": data(header="none", columns=POSITIONS)},
        {"data": data(header="none", columns={"prompt": 0, "completion": 1})},
        {"task": "regression", "data": data(header="first_row", columns={"text": "5"})},
        {"model": {"id": "org/base", "dropout": "off"}},
        {"metrics": {"profit": "shop.metrics:profit"}, "constraints": {"profit": {"min": 3}}},
        {
            "metrics": {"profit": "m:f"},
            "objective": {"metric": "profit", "direction": "maximize"},
            "budget": {"target_value": 1e6},
        },
        {"task": "ranking", "budget": {"target_value": 7}, "objective": {"metric": "margin"}},
        {"objective": {"metric": "bleu"}, "budget": {"target_value": 60}},
        {"constraints": {"rouge_l": {"min": 0.2}}},
        {
            "objective": {"metric": "rouge_l"},
            "evaluation": {"every_examples": 100, "generate": {"when": "rungs", "examples": 20}},
            "pruning": {"algorithm": "median"},
        },
        {"evaluation": {"generate": {"answer_pattern": r"#### (-?\d+)"}}},
        {"task": "preference", "search": searching(preference_beta={"min": 0.01, "max": 1.0})},
        {
            "task": "preference",
            "search": searching(loss={"choices": ["dpo", "simpo"]}, simpo_gamma={"choices": [0.5, 1.0]}),
        },
        {"task": "preference", "objective": {"metric": "eval_loss"}, "recipe": {"preference_beta": 0.5}},
        {
            "task": "preference",
            "objective": {"metric": "margin"},
            "recipe": {"loss": "simpo"},
            "search": searching(simpo_gamma={"choices": [0.5, 1.0]}),
        },
        {
            "task": "preference",
            "objective": {"metric": "margin"},
            "recipe": {"loss": "orpo"},
            "search": searching(preference_beta={"min": 0.1, "max": 1.0}),
        },
        {
            "task": "preference",
            "search": searching(loss={"choices": ["dpo", "orpo"]}, label_smoothing={"min": 0.0, "max": 0.5}),
        },
        {
            "task": "regression",
            "recipe": {"loss": "huber"},
            "search": searching(huber_delta={"choices": [0.5, 1.0]}),
        },
        {"task": "token_classification", "recipe": {"class_weights": {"B-LOC": 2, "O": 0.5}}},
        {
            "task": "sequence_classification",
            "search": searching(class_weights={"choices": ["none", "balanced"]}),
        },
    ],
    ids=repr,
)
def test_a_study_of_this_form_is_accepted_and_accepted_again(sections: dict[str, Any]) -> None:
    accepted_again(DOCUMENT | sections)


def test_positions_are_stored_as_text() -> None:
    definition = parse_definition(study("regression", data=data(header="none", columns=POSITIONS)))
    assert definition.data.columns == {"text": "5", "text_pair": "6", "score": "4"}


def test_text_is_generated_where_a_metric_needs_it() -> None:
    for sections in ({"objective": {"metric": "bleu"}}, {"constraints": {"exact_match": {"min": 0.1}}}):
        generate = parse_definition(DOCUMENT | sections).evaluation.generate
        assert generate is not None
        assert (generate.max_new_tokens, generate.examples, generate.when) == (64, None, "end")
    assert parse_definition(DOCUMENT).evaluation.generate is None


def test_a_field_of_one_loss_is_searched_where_that_loss_is() -> None:
    space = searching(loss={"choices": ["dpo", "simpo"]}, simpo_gamma={"choices": [0.5, 1.0]})
    definition = parse_definition(study("preference", search=space))
    assert definition.search.space.parameters["simpo_gamma"].when == {"loss": ("simpo",)}


def test_a_field_that_all_searched_losses_use_has_no_condition() -> None:
    space = searching(loss={"choices": ["dpo", "orpo"]}, preference_beta={"min": 0.1, "max": 1.0})
    parameters = parse_definition(study("preference", search=space)).search.space.parameters
    assert parameters["preference_beta"].when == {}
    condition = {"optimizer": ["adamw"]}
    space = searching(
        optimizer={"choices": ["adamw", "sgd"]},
        loss={"choices": ["dpo", "orpo"], "when": condition},
        preference_beta={"min": 0.1, "max": 1.0},
    )
    parameters = parse_definition(study("preference", search=space)).search.space.parameters
    assert parameters["preference_beta"].when == {"loss": ("dpo", "orpo")}


@pytest.mark.parametrize(
    ("sections", "path", "message"),
    [
        (
            {"task": "regression", "data": data(format="text")},
            "data.format",
            "is for the task causal_lm only; a row of regression has the fields text, score, text_pair",
        ),
        (
            {"data": data(columns={"prompt": 3})},
            "data.columns.prompt",
            "must be the column's name, as text; only data.header: none has positions",
        ),
        (
            {"data": data(header="none", columns={"text": "body"})},
            "data.columns.text",
            "must be the column's position, counted from 0, because data.header is none",
        ),
        (
            {"data": data(header="none", columns={"text": -1})},
            "data.columns.text",
            "must be the column's position, counted from 0, because data.header is none",
        ),
        (
            {"data": data(header="none", columns={"text": True})},
            "data.columns.text",
            "must be the column's position, counted from 0, because data.header is none",
        ),
        (
            {"data": data(header="none", columns={"text": 10_000})},
            "data.columns.text",
            "must be the column's position, counted from 0, because data.header is none",
        ),
        (
            {"data": data(header="none")},
            "data.columns",
            "must say which column holds each field, because data.header is none",
        ),
        (
            {"task": "regression", "data": data(header="none", columns={"text_pair": 1})},
            "data.columns",
            "must say which column holds text, score, because data.header is none",
        ),
        (
            {"data": data(header="none", columns={"text": 0}, eval="eval.jsonl.gz")},
            "data.header",
            "is for CSV files only, and the columns of data.eval have names",
        ),
        (
            {"data": data(header="none", columns={"text": 0}, train={"hub": "a/b", "split": "train"})},
            "data.header",
            "is for CSV files only, and the columns of data.train have names",
        ),
        (
            {"task": "regression", "recipe": {"label_smoothing": 0.1}},
            "recipe.label_smoothing",
            "is used only by causal_lm, seq2seq_lm, sequence_classification, token_classification and"
            " preference, and the task is regression; remove this key",
        ),
        (
            {"search": searching(head_learning_rate_ratio={"min": 1, "max": 10})},
            "search.space.head_learning_rate_ratio",
            "is used only by sequence_classification, token_classification, regression and ranking, and the"
            " task is causal_lm; remove this key",
        ),
        (
            {"search": searching(preference_beta={"min": 0.1, "max": 1})},
            "search.space.preference_beta",
            "is used only by preference, and the task is causal_lm; remove this key",
        ),
        (
            {"task": "preference", "recipe": {"loss": "focal"}},
            "recipe.loss",
            "is a loss of causal_lm, seq2seq_lm, sequence_classification and token_classification, and the"
            " task is preference",
        ),
        (
            {"search": searching(loss={"choices": ["focal", None]})},
            "search.space.loss.choices.1",
            "is null, which means the task's first loss; list that value instead",
        ),
        (
            {"search": searching(focal_gamma={"min": 1, "max": 3})},
            "search.space.focal_gamma",
            "has no effect: only focal uses it, and loss is cross_entropy (the default); set loss to focal in"
            " recipe, search it too, or remove this key",
        ),
        (
            {"task": "preference", "search": searching(simpo_gamma={"min": 0.1, "max": 1})},
            "search.space.simpo_gamma",
            "has no effect: only simpo uses it, and loss is dpo (the default); set loss to simpo in recipe,"
            " search it too, or remove this key",
        ),
        (
            {
                "task": "preference",
                "search": searching(loss={"choices": ["dpo"]}, simpo_gamma={"choices": [1]}),
            },
            "search.space.simpo_gamma",
            "is used only if loss is simpo, which is not among its choices",
        ),
        (
            {"metrics": {"accuracy": "m:f"}},
            "metrics.accuracy",
            "is the name of a built-in metric or cost",
        ),
        ({"metrics": {"a-b": "m:f"}}, "metrics.a-b", "is not a valid name of a metric"),
        (
            {"metrics": {"profit": "m.f"}},
            "metrics.profit",
            "must be a module and a function in it, such as my_metrics:profit",
        ),
        (
            {"metrics": {"profit": "m:f"}, "objective": {"metric": "profit"}},
            "objective.direction",
            "is required, because profit is a metric of the study's own",
        ),
        ({"objective": {"metric": "profit"}}, "objective.metric", "unknown metric"),
        (
            {"task": "regression", "constraints": {"accuracy": {"min": 0.5}}},
            "constraints.accuracy",
            "is not a metric of the task regression",
        ),
        (
            {"task": "ranking", "evaluation": {"generate": {}}},
            "evaluation.generate",
            "is only for causal_lm and seq2seq_lm, and the task is ranking; remove this key",
        ),
        (
            {"objective": {"metric": "answer_match"}},
            "evaluation.generate.answer_pattern",
            "is required with answer_match: a regular expression that finds the answer in a text",
        ),
        (
            {"constraints": {"answer_match": {"min": 0.5}}, "evaluation": {"generate": {"examples": 4}}},
            "evaluation.generate.answer_pattern",
            "is required with answer_match: a regular expression that finds the answer in a text",
        ),
        (
            {
                "metrics": {"profit": "my_metrics:profit"},
                "objective": {"metric": "profit", "direction": "maximize"},
                "evaluation": {"every_examples": 100, "generate": {}},
                "pruning": {"algorithm": "median"},
            },
            "evaluation.generate.when",
            "must be rungs, because pruning compares profit at rungs",
        ),
        (
            {
                "objective": {"metric": "rouge_l"},
                "evaluation": {"every_examples": 100},
                "pruning": {"algorithm": "median"},
            },
            "evaluation.generate.when",
            "must be rungs, because pruning compares rouge_l at rungs",
        ),
        (
            {
                "task": "preference",
                "objective": {"metric": "eval_loss"},
                "search": searching(preference_beta={"min": 0.1, "max": 1}),
            },
            "objective.metric",
            "cannot be compared between trials, because it depends on preference_beta, which the study"
            " searches",
        ),
        (
            {
                "task": "preference",
                "objective": {"metric": "eval_loss"},
                "recipe": {"loss": "simpo"},
                "search": searching(simpo_gamma={"choices": [0.5, 1]}),
            },
            "objective.metric",
            "cannot be compared between trials, because it depends on simpo_gamma, which the study searches",
        ),
        (
            {
                "task": "preference",
                "objective": {"metric": "margin"},
                "search": searching(loss={"choices": ["dpo", "orpo"]}),
            },
            "objective.metric",
            "cannot be compared between trials, because it depends on loss, which the study searches",
        ),
        (
            {
                "task": "preference",
                "objective": {"metric": "margin"},
                "search": searching(preference_beta={"min": 0.1, "max": 1}),
            },
            "objective.metric",
            "cannot be compared between trials, because it depends on preference_beta, which the study"
            " searches",
        ),
        (
            {"task": "preference", "recipe": {"label_smoothing": 0.6}},
            "recipe.label_smoothing",
            "takes more pairs to be labelled the wrong way round than the right way",
        ),
        (
            {"task": "preference", "search": searching(label_smoothing={"choices": [0.0, 0.7]})},
            "search.space.label_smoothing",
            "takes more pairs to be labelled the wrong way round than the right way",
        ),
        (
            {
                "task": "preference",
                "recipe": {"loss": "orpo"},
                "search": searching(label_smoothing={"min": 0.0, "max": 0.1}),
            },
            "search.space.label_smoothing",
            "has no effect: only dpo uses it, and loss is orpo (fixed in recipe); set loss to dpo in recipe,"
            " search it too, or remove this key",
        ),
        (
            {"task": "regression", "objective": {"metric": "r2"}, "budget": {"target_value": 1.5}},
            "budget.target_value",
            "can never be reached: r2 is always at most 1",
        ),
        (
            {"task": "regression", "budget": {"target_value": -0.1}},
            "budget.target_value",
            "can never be reached: mse is always at least 0",
        ),
        (
            {"objective": {"metric": "bleu"}, "budget": {"target_value": 101}},
            "budget.target_value",
            "can never be reached: bleu is always at most 100",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_with_the_task_is_one_fault_with_its_reason(
    faults_of: FaultsOf, sections: dict[str, Any], path: str, message: str
) -> None:
    assert {where: fault.message for where, fault in faults_of(DOCUMENT | sections).items()} == {
        path: message
    }


def test_an_unknown_metric_is_told_the_tasks_and_the_studys_own(faults_of: FaultsOf) -> None:
    document = study("regression", metrics={"profit": "m:f"}, objective={"metric": "profti"})
    fault = faults_of(document)["objective.metric"]
    assert fault.allowed == "mse, mae, pearson, spearman, r2, eval_loss, profit"
    assert fault.nearest == "profit"


def test_a_task_with_a_fault_brings_no_others_along(faults_of: FaultsOf) -> None:
    document = study("regresion", recipe={"huber_delta": 2}, objective={"metric": "spearman"})
    fault = faults_of(document)["task"]
    assert list(faults_of(document)) == ["task"]
    assert fault.nearest == "regression"
