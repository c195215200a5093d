"""The report's process: what comes of it when it is slow, broken, or too much at once."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from search_spaces.data_report import Report
from service.errors import Unavailable
from service.plans.report_process import AT_ONCE, WAITING, ReportProcesses, ReportUnavailable
from service.plans.report_request import report_request
from tests.plan_cases import make_definition

REQUEST = report_request(make_definition())


def processes(code: str, timeout: float = 30.0) -> ReportProcesses:
    return ReportProcesses(timeout, command=(sys.executable, "-c", code))


def why_not(code: str, timeout: float = 30.0) -> str:
    with pytest.raises(ReportUnavailable) as caught:
        processes(code, timeout).make(REQUEST)
    return str(caught.value)


def test_the_request_goes_in_and_the_report_comes_out() -> None:
    code = (
        "import sys, json; r = json.load(sys.stdin);"
        "print(json.dumps({'model': None, 'data': None,"
        " 'problems': [{'about': 'data', 'message': r['data']['train']}]}))"
    )
    report = processes(code).make(REQUEST)
    assert [problem.message for problem in report.problems] == ["train.jsonl"]


def test_a_process_that_fails_says_its_code_alone() -> None:
    assert why_not("import sys; sys.exit('a secret')").startswith("its process ended with code 1")


@pytest.mark.parametrize("answer", ["", "[]", '{"model": 1}', "Traceback"])
def test_an_answer_that_is_no_report_is_none(answer: str) -> None:
    assert "cannot be read" in why_not(f"print({answer!r})")


def test_a_process_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    assert "longer than 2 s" in why_not(code, timeout=2.0)
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_the_process_gets_none_of_the_services_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSWEEP_API_KEY", "a secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = (
        "import os, json;"
        "found = [n for n in os.environ if n.startswith('NIGHTSWEEP') or n == 'HF_HUB_OFFLINE'];"
        "print(json.dumps({'model': None, 'data': None,"
        " 'problems': [{'about': 'data', 'message': ' '.join(found)}]}))"
    )
    assert processes(code).make(REQUEST).problems[0].message == "HF_HUB_OFFLINE"


def test_no_more_than_a_few_are_made_or_wait_at_once(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        'print(\'{"model": null, "data": null, "problems": []}\')'
    )
    makers, reports, refused = processes(code), [], []

    def make() -> None:
        try:
            reports.append(makers.make(REQUEST))
        except Unavailable as error:
            refused.append(str(error))
            go.touch()  # the others are all in by now

    threads = [threading.Thread(target=make) for _ in range(AT_ONCE + WAITING + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert refused == ["6 plans are being made already; ask again in a minute."]
    assert reports == [Report(model=None, data=None, problems=())] * (AT_ONCE + WAITING)
