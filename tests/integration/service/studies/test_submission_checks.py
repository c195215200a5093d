"""What a submission is refused for once its model and the first rows of its data were read, over REST.

One file, long as it is: all tests share one API, whose process with torch takes seconds to start.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from transformers import BertConfig, BertForSequenceClassification

from service.app import create_app
from service.maintenance import schema
from service.plans.checks import FIRST_ROWS
from service.plans.data_reports import processes
from service.settings import Settings
from tests.support.service.api import LOCAL, expect_problem
from tests.support.workers.families import build_family

PAIR = {"prompt": "turn on the lamp\n", "completion": "lamp on"}
LONG = {"prompt": "lamp " * 80, "completion": "on"}
TALK = {"messages": [{"role": "user", "content": "lamp on"}, {"role": "assistant", "content": "done"}]}

Submit = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_base_dir: Path) -> Path:
    made = tmp_path_factory.mktemp("data")
    shutil.copytree(tiny_base_dir, made / "base")
    for family in ("t5", "deepseek", "deberta"):
        build_family(family, made / family)
    build_family("bert", made / "bert", dropout=True)
    shutil.copytree(made / "bert", made / "of_five")
    config = BertConfig.from_pretrained(made / "bert", num_labels=5)
    BertForSequenceClassification(config).save_pretrained(made / "of_five")
    return made


@pytest.fixture(scope="module")
def checking(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[TestClient]:
    """An API that checks, with as much time as the machine may need."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, data_roots=(folder,), submission_check_seconds=240)
    schema.upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL) as opened:
        yield opened


@pytest.fixture
def hasty(tmp_path: Path, folder: Path) -> Iterator[TestClient]:
    """One that has no time."""
    settings = Settings(home=tmp_path / "home", data_roots=(folder,), submission_check_seconds=0.001)
    schema.upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL) as opened:
        yield opened


def write(folder: Path, name: str, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return name


def definition(
    folder: Path, train: list[Any], eval_rows: list[Any] | None = None, **sections: Any
) -> dict[str, Any]:
    data = {
        "train": write(folder, "train.jsonl", train),
        "eval": write(folder, "eval.jsonl", [PAIR] if eval_rows is None else eval_rows),
        "max_length": 64,
        **sections.pop("data", {}),
    }
    search = {"algorithm": "random", "trials": 2, "space": {"learning_rate": {"min": 1e-4, "max": 1e-3}}}
    name = f"study-{threading.get_ident()}-{len(list(folder.iterdir()))}"
    return {"name": name, "model": {"id": "base"}, "data": data, "search": search, **sections}


def kinds(client: TestClient, study: dict[str, Any]) -> list[str]:
    return [event["kind"] for event in client.get(f"/v1/studies/{study['id']}/events").json()["items"]]


FAULTY: dict[str, tuple[dict[str, Any], str, str]] = {
    "a missing column": ({"train": [{"prompt": "a", "answer": "b"}]}, "data.train", "fit no format"),
    "a column that one row lacks": ({"train": [PAIR, {"prompt": "a"}]}, "data.train", "no 'completion'"),
    "a renamed column that is not there": (
        {"train": [PAIR], "data": {"columns": {"prompt": "question"}}},
        "data.train",
        "no column 'question', which data.columns gives as 'prompt'. It has: prompt, completion. The same"
        " goes for data.eval.",
    ),
    "another format than is said": ({"train": [PAIR], "data": {"format": "text"}}, "data.train", "no 'text'"),
    "an empty eval set": ({"train": [PAIR], "eval_rows": []}, "data.eval", "has no rows"),
    "an empty train set": ({"train": []}, "data.train", "has no rows"),
    "a line that is not JSON": ({"train": [PAIR, "no json"]}, "data.train", "not valid JSON"),
    "a length above the model's": (
        {"train": [PAIR], "data": {"max_length": 4_096}},
        "data.max_length",
        "has positions for",
    ),
    "rows that all lose their answer": ({"train": [LONG] * 3}, "data.max_length", "No row of "),
    "eval rows that all lose their answer": (
        {"train": [PAIR], "eval_rows": [LONG]},
        "data.max_length",
        "No row of ",
    ),
    "conversations without an answer": (
        {"train": [{"messages": TALK["messages"][:1]}], "eval_rows": [TALK]},
        "data.train",
        "every token is masked",
    ),
    "modules that no recipe finds": (
        {"train": [PAIR], "recipe": {"target_modules": ["q_proj", "lm_head"]}},
        "recipe.target_modules",
        "'lm_head'",
    ),
    "lengths of which none can be": (
        {
            "train": [PAIR],
            "search": {
                "algorithm": "grid",
                "space": {"max_length": {"choices": [4_096, 8_192]}},
            },
        },
        "search.space.max_length",
        "has positions for",
    ),
}

LABELLED = [{"text": f"lamp {name}", "label": name} for name in ("on", "off", "dim")]
OF_LABELS = {"task": "sequence_classification", "train": LABELLED, "eval_rows": LABELLED}
ANSWERS = [{"prompt": f"two plus {n}\n", "completion": f"it is #### {n}"} for n in ("one", "two")]


END = "<|im_end|>"


def answer_match(pattern: str, **generate: Any) -> dict[str, Any]:
    return {
        "objective": {"metric": "answer_match"},
        "evaluation": {"generate": {"answer_pattern": pattern, **generate}},
    }


FAULTY |= {
    "a pattern that finds no answer": (
        {"train": [PAIR], "eval_rows": ANSWERS, **answer_match(r"answer: (\w+)")},
        "evaluation.generate.answer_pattern",
        "finds no answer in any reference of the eval data (2 references). The first one is"
        " 'it is #### one'. Change the pattern",
    ),
    "a pattern that is none": (
        {"train": [PAIR], **answer_match("#### (?=o)")},
        "evaluation.generate.answer_pattern",
        "is not a valid regular expression of RE2, which has neither look-around nor backreferences",
    ),
    "text to generate from rows without a prompt": (
        {
            "train": [{"text": "lamp on"}],
            "eval_rows": [{"text": "lamp on"}],
            "objective": {"metric": "exact_match"},
        },
        "data.eval",
        "eval.jsonl:1: The row has no prompt to generate from",
    ),
    "references that rouge cannot read": (
        {
            "train": [PAIR],
            "eval_rows": [{"prompt": "lamp", "completion": "???"}],
            "objective": {"metric": "rouge_l"},
        },
        "objective.metric",
        "rouge_l cannot be measured: it knows the letters a to z and digits only",
    ),
    "a weight of an unknown label": (
        {**OF_LABELS, "recipe": {"class_weights": {"dims": 2.0}}},
        "recipe.class_weights",
        "names 'dims', which is not a label of the train data. Did you mean 'dim'?",
    ),
    "roc_auc of three labels": (
        {**OF_LABELS, "objective": {"metric": "roc_auc"}},
        "objective.metric",
        "The metric roc_auc is for two labels; the train data has 3: 'dim', 'off', 'on'. Choose mcc.",
    ),
    "a constraint on a metric of one label": (
        {
            "task": "sequence_classification",
            "train": [{"text": "lamp on", "label": ["on", "lamp"]}],
            "eval_rows": [{"text": "lamp on", "label": ["on"]}],
            "constraints": {"mcc": {"min": 0.5}},
        },
        "constraints.mcc",
        "The metric mcc is for rows of one label",
    ),
    "layers that PEFT takes for fused experts": (
        {"train": [PAIR], "model": {"id": "deepseek"}},
        "recipe.target_modules",
        "for its fused experts, which cannot be adapted. Leave them out of target_modules",
    ),
    "a head of another size": (
        {**OF_LABELS, "model": {"id": "of_five"}},
        "model.id",
        "already has a head, of another size: classifier.bias is [5] in the file, but the study's labels"
        " need [3]",
    ),
    "a number format that overflows": (
        {**OF_LABELS, "model": {"id": "deberta", "compute_dtype": "float16"}},
        "model.id",
        "(deberta) overflows in float16",
    ),
    "rows with other numbers of end tokens": (
        {
            "task": "regression",
            "train": [{"text": f"lamp on{END}", "score": 1}, {"text": f"lamp{END} off{END}", "score": 2}],
            "eval_rows": [{"text": f"lamp{END}", "score": 1}],
            "model": {"id": "t5"},
        },
        "data.train",
        f"train.jsonl:2: The row has the end token '{END}' 2 times, but ",
    ),
    "rows without the end token that the model reads them at": (
        {
            "task": "sequence_classification",
            "train": LABELLED,
            "eval_rows": [{"text": f"lamp on{END}", "label": "on"}],
            "model": {"id": "t5"},
        },
        "data.train",
        f"train.jsonl:1: The row does not have the end token '{END}', at which the model",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_what_every_trial_would_fail_at_is_refused(checking: TestClient, folder: Path, case: str) -> None:
    given, path, words = FAULTY[case]
    sent = definition(folder, **given)
    before = len(checking.get("/v1/studies").json()["items"])
    problem = expect_problem(checking.post("/v1/studies", json=sent), 422)
    assert [(fault["path"], words in fault["message"]) for fault in problem["faults"]] == [(path, True)]
    assert len(checking.get("/v1/studies").json()["items"]) == before


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*.safetensors", "has no weights"),
        ("tokenizer*", "has no tokenizer"),
        ("config.json", "no config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(
    checking: TestClient, folder: Path, pattern: str, words: str
) -> None:
    shutil.copytree(folder / "base", folder / pattern.strip("*."))
    for file in (folder / pattern.strip("*.")).glob(pattern):
        file.unlink()
    sent = definition(folder, [PAIR], model={"id": pattern.strip("*.")})
    (fault,) = expect_problem(checking.post("/v1/studies", json=sent), 422)["faults"]
    assert (fault["path"], words in fault["message"]) == ("model.id", True)


def test_a_plan_refuses_for_the_same_reason(checking: TestClient, folder: Path) -> None:
    given, path, words = FAULTY["roc_auc of three labels"]
    plan = checking.post("/v1/studies?dry_run=true", json=definition(folder, **given)).json()
    assert [(problem["path"], words in problem["message"]) for problem in plan["problems"]] == [(path, True)]
    assert not plan["acceptable"]


@pytest.mark.parametrize(
    ("model", "evidence"),
    [
        ({"id": "deberta"}, {"reason": "layers", "layers": "pos_proj, pos_q_proj"}),
        ({"id": "bert"}, {"reason": "dropout"}),
        ({"id": "bert", "dropout": "off"}, None),
    ],
)
def test_a_plan_says_whose_trials_are_not_packed(
    checking: TestClient, folder: Path, model: dict[str, str], evidence: dict[str, str] | None
) -> None:
    sent = definition(folder, LABELLED, LABELLED, task="sequence_classification", model=model)
    plan = checking.post("/v1/studies?dry_run=true", json=sent).json()
    found = [given["evidence"] for given in plan["warnings"] if given["code"] == "not_packed"]
    assert (plan["acceptable"], found) == (True, [evidence] if evidence else [])


def test_a_pattern_that_finds_some_answers_is_accepted_and_the_plan_counts_the_others(
    checking: TestClient, folder: Path
) -> None:
    sent = definition(folder, [PAIR], [*ANSWERS, PAIR], **answer_match("#### (.*)"))
    plan = checking.post("/v1/studies?dry_run=true", json=sent).json()
    (given,) = (each for each in plan["warnings"] if each["code"] == "answers_missing")
    assert given["evidence"] == {"without_answer": 1, "references": 3}
    assert f"The first of them is that of {folder}/eval.jsonl:3." in given["message"]
    assert plan["acceptable"]
    assert checking.post("/v1/studies", json=sent).status_code == 201


def test_only_the_examples_that_text_is_generated_from_are_searched_for_an_answer(
    checking: TestClient, folder: Path
) -> None:
    sent = definition(folder, [PAIR], [PAIR, *ANSWERS], **answer_match("#### (.*)", examples=1))
    (fault,) = expect_problem(checking.post("/v1/studies", json=sent), 422)["faults"]
    assert "in any reference of the eval data (1 reference)" in fault["message"]


def test_conversations_for_a_model_without_a_chat_template_are_refused(
    checking: TestClient, folder: Path
) -> None:
    shutil.copytree(folder / "base", folder / "silent")
    (folder / "silent/chat_template.jinja").unlink()
    sent = definition(folder, [TALK] * 20, [TALK] * 3, model={"id": "silent"})
    (fault,) = expect_problem(checking.post("/v1/studies", json=sent), 422)["faults"]
    assert "chat template" in fault["message"]


@pytest.mark.parametrize("train", [[PAIR], [TALK], [PAIR] * (FIRST_ROWS + 1) + ["no json"], [LONG, PAIR]])
def test_a_sound_study_is_accepted_without_a_word_about_it(
    checking: TestClient, folder: Path, train: list[Any]
) -> None:
    # What lies beyond the first rows is for the workers.
    sent = definition(folder, train, [TALK] if train == [TALK] else None, name=f"sound-{hash(str(train))}")
    answer = checking.post("/v1/studies", json=sent)
    assert (answer.status_code, kinds(checking, answer.json())) == (201, ["study_queued"])


def test_recipes_of_which_some_would_train_are_accepted(checking: TestClient, folder: Path) -> None:
    space = {"target_modules": {"choices": ["all-linear", ["lm_head"]]}}
    search = {"algorithm": "grid", "space": space}
    sent = definition(folder, [PAIR], name="some-train", search=search)
    assert checking.post("/v1/studies", json=sent).status_code == 201


def test_a_range_test_is_checked_as_its_study_is(checking: TestClient, folder: Path) -> None:
    sent = definition(folder, [{"prompt": "a", "answer": "b"}])
    (fault,) = expect_problem(checking.post("/v1/range-tests", json=sent), 422)["faults"]
    assert fault["path"] == "data.train"


def test_a_schedule_is_checked_as_its_studies_would_be(checking: TestClient, folder: Path) -> None:
    sent = {"cron": "0 2 * * *", "definition": definition(folder, [PAIR], [])}
    problem = expect_problem(checking.post("/v1/schedules", json=sent), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["definition.data.eval"]
    assert problem["detail"] == "The schedule has 1 fault: definition.data.eval."


def test_a_schedules_new_definition_is_checked_as_its_first_was(checking: TestClient, folder: Path) -> None:
    sent = definition(folder, [PAIR], name="patched")
    made = checking.post("/v1/schedules", json={"cron": "0 2 * * *", "definition": sent})
    wrong = definition(folder, [PAIR], [], name="patched")
    problem = expect_problem(checking.patch("/v1/schedules/patched", json={"definition": wrong}), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["definition.data.eval"]
    assert problem["detail"] == "The change has 1 fault: definition.data.eval."
    assert checking.get("/v1/schedules/patched").json() == made.json()
    assert checking.patch("/v1/schedules/patched", json={"seed": 8}).status_code == 200


def test_a_schedule_that_could_not_be_checked_says_so_in_its_history(hasty: TestClient, folder: Path) -> None:
    sent = definition(folder, ["no json"], name="hasty")
    hasty.post("/v1/schedules", json={"cron": "0 2 * * *", "definition": sent})
    hasty.patch("/v1/schedules/hasty", json={"definition": {**sent, "recipe": {"epochs": 2}}})
    history = hasty.get("/v1/schedules/hasty/history").json()["items"]
    assert [event["kind"] for event in history] == ["unchecked", "changed", "unchecked", "created"]
    words = "its data and its model were not checked when its definition was sent: "
    assert [event["message"].startswith(words) for event in history] == [True, False, True, False]


def test_a_file_that_was_put_right_is_read_again(checking: TestClient, folder: Path) -> None:
    sent = definition(folder, [{"prompt": "a"}], name="put-right")
    assert checking.post("/v1/studies", json=sent).status_code == 422
    write(folder, "train.jsonl", [PAIR])
    assert checking.post("/v1/studies", json=sent).status_code == 201


def test_an_answer_that_is_given_again_needs_no_check(checking: TestClient, folder: Path) -> None:
    sent, headers = definition(folder, [PAIR], name="again"), {"Idempotency-Key": "again"}
    first = checking.post("/v1/studies", json=sent, headers=headers)
    write(folder, "train.jsonl", ["no json"])
    second = checking.post("/v1/studies", json=sent, headers=headers)
    assert (first.status_code, second.status_code, second.content) == (201, 201, first.content)


def test_a_model_that_only_workers_can_fetch_is_accepted_with_an_event(
    checking: TestClient, folder: Path
) -> None:
    sent = definition(folder, [PAIR], name="far", model={"id": "nobody/nothing"})
    study = checking.post("/v1/studies", json=sent).json()
    event = checking.get(f"/v1/studies/{study['id']}/events").json()["items"][-1]
    assert event["kind"] == "data_unchecked"
    assert event["message"].startswith(
        "the data and the model of this study were not checked at submission: The hub model nobody/nothing"
    )


def test_what_takes_too_long_is_accepted_with_an_event(hasty: TestClient, folder: Path) -> None:
    study = hasty.post("/v1/studies", json=definition(folder, ["no json"], name="hasty")).json()
    event = hasty.get(f"/v1/studies/{study['id']}/events").json()["items"][-1]
    assert event["kind"] == "data_unchecked"
    assert "within 0.001 s (NIGHTSWEEP_SUBMISSION_CHECK_SECONDS)" in event["message"]


def test_a_host_without_the_workers_packages_accepts_with_an_event(
    hasty: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    sent = definition(folder, ["no json"], name="bare")
    ranged = hasty.post("/v1/range-tests", json=sent).json()
    assert kinds(hasty, hasty.post("/v1/studies", json=sent).json()) == ["study_queued", "data_unchecked"]
    assert kinds(hasty, ranged) == ["study_queued", "data_unchecked"]
