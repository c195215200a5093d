"""Checks of submissions: what is asked once, what is asked again, and who waits for whom."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from search_spaces.data_report import FilesReport, ReportProblem, ReportRequest
from search_spaces.definition import StudyDefinition
from service.errors import Invalid
from service.plans.checks import SubmissionChecks
from service.plans.data_reports.processes import CHECKS, ReportProcesses
from service.plans.data_reports.warm_process import ReportUnavailable
from tests.support.service.plans import make_definition


class Reports(ReportProcesses):
    """Counts what it is asked, and answers with the given problems."""

    def __init__(self, *problems: ReportProblem, away: str | None = None) -> None:
        super().__init__(1.0)
        self.asked: list[ReportRequest] = []
        self.began, self.go = threading.Event(), threading.Event()
        self.go.set()
        self._report = FilesReport(model=None, data=None, problems=problems)
        self._away = away

    def check(self, request: ReportRequest, seconds: float) -> FilesReport:
        self.asked.append(request)
        self.began.set()
        self.go.wait(60)
        if self._away is not None:
            raise ReportUnavailable(self._away)
        return self._report


WRONG = ReportProblem(about="data", message="It is wrong.", path="data.max_length", every_trial=True)


@pytest.fixture
def local(tmp_path: Path) -> StudyDefinition:
    """A definition whose files are there."""
    (tmp_path / "base").mkdir()
    for name in ("train.jsonl", "eval.jsonl", "base/config.json"):
        (tmp_path / name).write_text("one")
    data = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl"), "max_length": 64}
    return make_definition(model={"id": str(tmp_path / "base")}, data=data)


def test_faults_have_the_definitions_paths_and_values() -> None:
    recipes = WRONG.model_copy(update={"about": "recipe", "path": "recipe.batch_size"})
    with pytest.raises(Invalid) as caught:
        SubmissionChecks(Reports(WRONG, recipes), 1).require_sound(
            make_definition(), what="The schedule", below="definition"
        )
    length, batch_size = caught.value.faults
    assert (length.path, length.value, length.message) == ("definition.data.max_length", 64, "It is wrong.")
    assert batch_size.path == "definition.search.space.batch_size"
    assert batch_size.value["choices"] == [4, 16]
    assert caught.value.detail.startswith("The schedule has 2 faults")


def test_a_fault_says_its_path_once() -> None:
    long = WRONG.model_copy(update={"message": "data.max_length is 64 tokens, which is too long."})
    with pytest.raises(Invalid) as caught:
        SubmissionChecks(Reports(long), 1).require_sound(make_definition())
    assert [fault.message for fault in caught.value.faults] == ["is 64 tokens, which is too long."]


def test_what_some_trials_fail_at_refuses_nothing() -> None:
    some = WRONG.model_copy(update={"about": "recipe", "every_trial": False})
    assert SubmissionChecks(Reports(some), 1).require_sound(make_definition()) is None


def test_only_the_first_rows_are_asked_for() -> None:
    reports = Reports()
    SubmissionChecks(reports, 1).require_sound(make_definition())
    assert (reports.asked[0].max_rows, reports.asked[0].max_counted) == (1_000, 0)


def test_no_check_is_made_where_none_is_wanted() -> None:
    reports = Reports(WRONG)
    assert SubmissionChecks(reports, 0).require_sound(make_definition()) is None
    assert reports.asked == []


def test_the_same_model_and_data_are_looked_at_once(local: StudyDefinition) -> None:
    reports = Reports()
    checks = SubmissionChecks(reports, 1)
    for name in ("one", "two"):
        checks.require_sound(local.model_copy(update={"name": name}))
    assert len(reports.asked) == 1


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl", "base/config.json", "base/new.json"])
def test_a_file_that_has_changed_is_looked_at_again(local: StudyDefinition, name: str) -> None:
    reports = Reports()
    checks = SubmissionChecks(reports, 1)
    checks.require_sound(local)
    (Path(local.model.id).parent / name).write_text("another")
    checks.require_sound(local)
    assert len(reports.asked) == 2


def test_another_length_is_looked_at_for_itself(local: StudyDefinition) -> None:
    reports = Reports()
    checks = SubmissionChecks(reports, 1)
    checks.require_sound(local)
    data = local.data.model_copy(update={"max_length": 32})
    checks.require_sound(local.model_copy(update={"data": data}))
    assert len(reports.asked) == 2


def test_what_could_not_be_looked_at_is_asked_for_again(local: StudyDefinition) -> None:
    reports = Reports(away="it is far")
    checks = SubmissionChecks(reports, 1)
    assert [checks.require_sound(local) for _ in range(2)] == ["it is far", "it is far"]
    assert len(reports.asked) == 2


def test_a_model_that_only_workers_can_fetch_is_no_fault() -> None:
    far = ReportProblem(about="host", message="The hub is far.")
    assert SubmissionChecks(Reports(far), 1).require_sound(make_definition()) == "The hub is far."


def test_submissions_that_come_together_share_one_report(local: StudyDefinition) -> None:
    reports, answers = Reports(WRONG), []
    reports.go.clear()
    checks = SubmissionChecks(reports, 60)

    def submit() -> None:
        with pytest.raises(Invalid) as caught:
            checks.require_sound(local)
        answers.append(caught.value.detail)

    threads = [threading.Thread(target=submit) for _ in range(CHECKS)]
    for thread in threads:
        thread.start()
    reports.began.wait(60)
    reports.go.set()
    for thread in threads:
        thread.join(60)
    assert (len(reports.asked), len(answers)) == (1, CHECKS)


def test_nobody_waits_longer_for_anothers_report_than_for_an_own_one(local: StudyDefinition) -> None:
    reports = Reports()
    reports.go.clear()
    checks = SubmissionChecks(reports, 0.01)
    first = threading.Thread(target=checks.require_sound, args=(local,))
    first.start()
    reports.began.wait(60)
    assert checks.require_sound(local) == "another check of the same data took 0.01 s"
    reports.go.set()
    first.join(60)


def test_no_more_threads_wait_than_are_counted(local: StudyDefinition) -> None:
    reports = Reports()
    with reports.waiting():
        others = [reports.waiting() for _ in range(CHECKS - 1)]
        for other in others:
            other.__enter__()
        with pytest.raises(ReportUnavailable, match=f"checking {CHECKS} other submissions"):
            reports.waiting().__enter__()
        for other in others:
            other.__exit__(None, None, None)


def test_a_file_that_is_gone_is_no_error_here(local: StudyDefinition) -> None:
    os.remove(str(local.data.train))
    assert SubmissionChecks(Reports(), 1).require_sound(local) is None
