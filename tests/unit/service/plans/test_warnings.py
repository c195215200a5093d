"""Each warning, from what calls for it, and none where nothing does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from search_spaces.data_report import Answers, Balance, Count, DataReport, FilesReport, Lengths, ReportProblem
from search_spaces.definition import StudyDefinition
from service.devices.cluster import Cluster, Node
from service.plans.plan import make_plan
from service.plans.schemas import PlanView, PlanWarning
from tests.support.service.plans import make_data, make_definition, make_split


def plan(
    definition: StudyDefinition | None = None, data: DataReport | None = None, **changes: Any
) -> PlanView:
    report = FilesReport(model=None, data=data or make_data(), problems=changes.pop("problems", ()))
    return make_plan(
        definition or make_definition(recipe={"batch_size": 4}, search=rate(1e-4, 1e-3)),
        report,
        None,
        [],
        name_taken=changes.pop("name_taken", False),
    )


def warnings(
    definition: StudyDefinition | None = None, data: DataReport | None = None
) -> dict[str, PlanWarning]:
    return {warning.code: warning for warning in plan(definition, data).warnings}


def rate(low: float, high: float, **changes: Any) -> dict[str, Any]:
    return {"space": {"learning_rate": {"min": low, "max": high, "scale": "log", **changes}}}


def counted(value: str) -> tuple[Count, ...]:
    return (Count(value=value, rows=3, share=0.03),)


@pytest.mark.parametrize("found_by", ["prefixes", "both"])
def test_turns_that_were_found_for_certain_call_for_no_warning(found_by: str) -> None:
    assert warnings(data=make_data(make_split(turns_found_by=counted(found_by)))) == {}


def test_what_nothing_reads_is_named() -> None:
    split = make_split(unread_columns=counted("id"), unread_message_keys=counted("user.name"))
    assert warnings(data=make_data(split))["unread_fields"].message == (
        "In the train data, nothing reads the columns id (3 rows) and the message keys user.name (3 rows)."
    )


def test_an_ordinary_study_has_none() -> None:
    assert plan().warnings == []
    assert plan().acceptable


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        ("few_trials_for_tpe", {"search": {"trials": 9}}),
        ("wide_learning_rate", {"search": rate(1e-7, 1e-1)}),
        ("linear_learning_rate", {"search": rate(1e-5, 1e-3, scale="linear")}),
        ("fractional_epochs", {"recipe": {"epochs": 0.5}, "search": rate(1e-4, 1e-3)}),
        ("pruning_waits", {"pruning": {"algorithm": "median", "n_startup_trials": 12},
                           "evaluation": {"every_examples": 50}}),
        ("never_pruned", {"pruning": {"algorithm": "asha", "min_examples": 200},
                          "evaluation": {"every_examples": 50}}),
        ("evaluation_heavy", {"evaluation": {"every_examples": 10}}),
        ("batch_larger_than_data", {"recipe": {"batch_size": 128}, "search": rate(1e-4, 1e-3)}),
        ("more_trials_than_points", {"search": {"space": {"batch_size": {"choices": [4, 8]}}}}),
        ("few_steps", {"recipe": {"batch_size": 32}, "search": rate(1e-4, 1e-3)}),
        ("grid_cut_short", {"search": {"algorithm": "grid", "trials": 1,
                                       "space": {"batch_size": {"choices": [4, 8]}}}}),
    ],
)  # fmt: skip
def test_a_definition_that_calls_for_a_warning_gets_it(code: str, sections: dict[str, Any]) -> None:
    assert code in warnings(make_definition(**sections))


def test_a_range_test_answers_a_wide_range() -> None:
    search = {**rate(1e-7, 1e-1), "learning_rate_range_test": True}
    assert "wide_learning_rate" not in warnings(make_definition(search=search))


def test_a_single_step_of_warm_up_trains_nothing() -> None:
    definition = make_definition(recipe={"batch_size": 100, "warmup_ratio": 0.1}, search=rate(1e-4, 1e-3))
    found = warnings(definition)
    assert found["one_step"].evidence == {"batch_size": 100, "steps": 1}
    assert "trains at rate 0" in found["warm_up_never_ends"].message


@pytest.mark.parametrize(
    ("code", "data", "evidence"),
    [
        ("overlap", make_data(overlap_rows=3), {"rows": 3, "eval_rows": 50}),
        ("few_eval_rows", make_data(None, make_split(3)), {"rows": 3}),
        ("duplicates", make_data(make_split(duplicate_rows=2)), {"split": "train", "rows": 2, "of": 100}),
        (
            "unrendered",
            make_data(make_split(unrendered=counted("assistant.reasoning_content"))),
            {"split": "train", "assistant.reasoning_content": 3},
        ),
        (
            "unread_fields",
            make_data(make_split(unread_columns=counted("id"), unread_message_keys=counted("user.name"))),
            {"split": "train", "columns": 1, "message_keys": 1},
        ),
        (
            "assistant_mask",
            make_data(make_split(turns_found_by=counted("markers_unverified"))),
            {"split": "train", "found_by": "markers_unverified", "rows": 3},
        ),
        (
            "truncated",
            make_data(make_split(cut={"truncated_rows": 11})),
            {"split": "train", "max_length": 64, "share": 0.11, "p95_tokens": 30},
        ),
        (
            "little_supervised",
            make_data(make_split(cut={"supervised_tokens": 20})),
            {"split": "train", "share": 0.01},
        ),
        (
            "rows_left_out",
            make_data(make_split(unsupervised_rows=1, cut={"usable_rows": 97, "cut_away_rows": 2})),
            {"split": "train", "max_length": 64, "unsupervised": 1, "cut_away": 2},
        ),
        ("equal_pairs", make_data(make_split(equal_pairs=4)), {"split": "train", "rows": 4, "of": 100}),
        ("sampled", make_data(make_split(1_000, rows_read=100)), {"read": 100, "rows": 1_000}),
    ],
)
def test_rows_that_call_for_a_warning_get_it(code: str, data: DataReport, evidence: dict[str, Any]) -> None:
    assert warnings(data=data)[code].evidence == evidence


def of_task(**sections: Any) -> StudyDefinition:
    return make_definition(recipe={"batch_size": 4}, search=rate(1e-4, 1e-3), **sections)


CLASSES = {"task": "sequence_classification", "objective": {"metric": "accuracy"}}


def test_accuracy_is_no_objective_for_labels_of_one_kind() -> None:
    most = Count(value="on", rows=45, share=0.9)
    labels = Balance(column="label", distinct=2, most_frequent=(most,))
    data = make_data(make_split(cut={"supervised_tokens": 1}), make_split(50, labels=labels))
    assert warnings(of_task(**CLASSES), data)["imbalanced"].evidence == {"label": "on", "share": 0.9}
    # One label for each row is no small share of its tokens.
    assert warnings(of_task(**{**CLASSES, "objective": {"metric": "mcc"}}), data) == {}


def test_targets_that_no_trial_can_write_are_named() -> None:
    data = make_data(None, make_split(50, targets=Lengths(median=20, p95=80, longest=90)))
    sections = {"evaluation": {"generate": {"max_new_tokens": 64}}, "objective": {"metric": "rouge_l"}}
    assert warnings(of_task(**sections), data)["long_targets"].evidence == {
        "p95_tokens": 80,
        "max_new_tokens": 64,
    }


def test_references_without_an_answer_are_counted_and_the_first_is_named() -> None:
    answers = Answers(references=50, without_answer=2, first_without="eval.jsonl:7")
    sections = {
        "evaluation": {"generate": {"answer_pattern": "#### (.*)"}},
        "objective": {"metric": "answer_match"},
    }
    given = warnings(of_task(**sections), make_data(None, make_split(50, answers=answers)))["answers_missing"]
    assert given.evidence == {"without_answer": 2, "references": 50}
    assert "no answer in 2 of 50 references of the eval data. The first of them is that of eval.jsonl:7." in (
        given.message
    )


def test_a_tenth_truncated_is_not_worth_a_warning() -> None:
    assert warnings(data=make_data(make_split(cut={"truncated_rows": 10}))) == {}


def test_a_name_that_is_taken_is_a_warning_and_not_acceptable() -> None:
    planned = plan(name_taken=True)
    assert [warning.code for warning in planned.warnings] == ["name_taken"]
    assert not planned.acceptable


@pytest.mark.parametrize(
    ("about", "every_trial", "reasons"),
    [
        ("data", True, ["Every trial would fail: It is wrong."]),
        ("model", True, ["Every trial would fail: It is wrong."]),
        ("recipe", True, ["Every trial would fail: It is wrong."]),
        ("recipe", False, []),
        ("host", False, ["The data or the model could not be looked at from here: It is wrong."]),
    ],
)
def test_what_every_trial_fails_at_or_nobody_could_see_makes_a_study_not_acceptable(
    about: Any, every_trial: bool, reasons: list[str]
) -> None:
    planned = plan(problems=(ReportProblem(about=about, message="It is wrong.", every_trial=every_trial),))
    assert (planned.acceptable, planned.reasons) == (not reasons, reasons)


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({}, "search.space.batch_size"),
        ({"search": rate(1e-4, 1e-3)}, "recipe.batch_size"),
    ],
)
def test_a_recipes_problem_is_where_the_definition_has_it(sections: dict[str, Any], path: str) -> None:
    problem = ReportProblem(about="recipe", message="It is wrong.", path="recipe.batch_size")
    assert plan(make_definition(**sections), problems=(problem,)).problems[0].path == path


def test_without_a_report_the_rest_of_the_plan_comes() -> None:
    planned = make_plan(make_definition(), None, "torch is not installed", [], name_taken=False)
    assert planned.reasons == ["The data and the model were not looked at: torch is not installed."]
    assert (planned.trials.total, planned.training, planned.training_unknown) == (
        12,
        None,
        "torch is not installed",
    )


LAPTOP = (Node(cpus=2, gpus=0),)
TWO_MACHINES = (Node(cpus=8, gpus=1), Node(cpus=8, gpus=1))


@pytest.mark.parametrize(
    ("nodes", "resources", "code", "words"),
    [
        (LAPTOP, {"gpus_per_worker": 2}, "no_worker_fits", "1 node with 2 CPUs and 0 GPUs in all"),
        (
            LAPTOP,
            {"gpus_per_worker": 0.5},
            "no_worker_fits",
            "Set resources.gpus_per_worker to 0 to train on the CPU.",
        ),
        (TWO_MACHINES, {"gpus_per_worker": 2}, "no_worker_fits", "2 nodes with 16 CPUs and 2 GPUs in all"),
        ((), {}, "no_worker_fits", "A worker needs a CPU core, and no node has that: "),
        (LAPTOP, {"workers": 8}, "fewer_workers_fit", "only 2 such workers fit"),
        (TWO_MACHINES, {"workers": 3}, "fewer_workers_fit", "only 2 such workers fit"),
        (TWO_MACHINES, {"workers": 5, "gpus_per_worker": 0.5}, "fewer_workers_fit", "only 4 such"),
    ],
)
def test_workers_that_the_cluster_does_not_hold_are_warned_of(
    nodes: tuple[Node, ...], resources: dict[str, Any], code: str, words: str
) -> None:
    found = [each for each in on(nodes, resources).warnings if each.code == code]
    assert [words in warning.message for warning in found] == [True]


@pytest.mark.parametrize(
    ("nodes", "resources", "workers"),
    [
        (LAPTOP, {}, 2),
        (LAPTOP, {"workers": 2, "gpus_per_worker": 0}, 2),
        (TWO_MACHINES, {}, 2),
        (TWO_MACHINES, {"workers": 4, "gpus_per_worker": 0.5}, 4),
    ],
)
def test_workers_that_fit_are_counted_without_a_warning(
    nodes: tuple[Node, ...], resources: dict[str, Any], workers: int
) -> None:
    planned = on(nodes, resources)
    assert (planned.cluster.workers, planned.warnings) == (workers, [])


def test_a_cluster_that_nobody_has_seen_is_unknown() -> None:
    assert plan().cluster.unknown == "no coordinator has seen the cluster yet"
    local = make_plan(make_definition(), None, "it is far", None, name_taken=False)
    assert local.cluster.unknown == "no server was asked"


def on(nodes: tuple[Node, ...], resources: dict[str, Any]) -> PlanView:
    return make_plan(
        make_definition(recipe={"batch_size": 4}, search=rate(1e-4, 1e-3), resources=resources),
        FilesReport(model=None, data=make_data(), problems=()),
        None,
        [],
        name_taken=False,
        cluster=Cluster(nodes=nodes, seen_at=datetime(2026, 1, 1, tzinfo=UTC)),
    )
