"""The report's process: what comes of it when it is slow, broken, or too much at once."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from search_spaces.data_report import FilesReport
from service.errors import Unavailable
from service.plans.data_reports import warm_process
from service.plans.data_reports.processes import AT_ONCE, WAITING, ReportProcesses
from service.plans.data_reports.request import report_request
from service.plans.data_reports.warm_process import ReportUnavailable
from tests.support.service.plans import make_definition

REQUEST = report_request(make_definition())
EMPTY = '{"model": null, "data": null, "problems": []}'
# What comes before the answer to each request.
SERVER = """
import json, os, sys, time
def say(*lines):
    print(*lines, sep="\\n", flush=True)
say('{"ready": true}')
for line in sys.stdin:
    asked = json.loads(line)
"""


def processes(answer: str, timeout: float = 30.0, *, server: str = SERVER) -> ReportProcesses:
    code = server + "".join(f"    {line}\n" for line in answer.splitlines())
    return ReportProcesses(timeout, command=(sys.executable, "-c", code))


def why_not(answer: str, timeout: float = 30.0) -> str:
    with processes(answer, timeout) as makers, pytest.raises(ReportUnavailable) as caught:
        makers.make(REQUEST)
    return str(caught.value)


def saying(message: str) -> str:
    """The code that answers with one problem."""
    return (
        f"problem = {{'about': 'data', 'message': str({message})}}\n"
        "say(json.dumps({'model': None, 'data': None, 'problems': [problem]}), '{\"code\": 0}')"
    )


def test_the_request_goes_in_and_the_report_comes_out() -> None:
    with processes(saying("asked['request']['data']['train']")) as makers:
        report = makers.make(REQUEST)
    assert [problem.message for problem in report.problems] == ["train.jsonl"]


def test_the_next_report_is_made_by_the_same_process() -> None:
    with processes(saying("os.getpid()")) as makers:
        first, second = makers.make(REQUEST), makers.check(REQUEST, 30)
    assert first == second


def test_a_process_that_was_started_before_makes_the_first_report(tmp_path: Path) -> None:
    note = f"\nopen({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()\ndef say"
    with processes(saying("os.getpid()"), server=SERVER.replace("\ndef say", note)) as makers:
        makers.warm_up()
        report = makers.make(REQUEST)
    assert [path.name for path in tmp_path.iterdir()] == [report.problems[0].message]


def test_a_process_that_has_ended_since_is_replaced() -> None:
    with processes(saying("os.getpid()") + "\nos._exit(0)") as makers:
        first, second = makers.make(REQUEST), makers.make(REQUEST)
    assert first != second


def test_a_process_that_fails_says_its_code_alone() -> None:
    assert why_not("sys.exit('a secret')").startswith("the process that reads them ended with code 1;")
    assert why_not("say('{\"code\": 9}')").startswith("the process that reads them ended with code 9;")


def test_an_error_that_is_not_foreseen_is_told() -> None:
    assert "unexpected error (KeyError: 'a');" in why_not(
        "say(json.dumps({'failed': \"KeyError: 'a'\"}), '{\"code\": 1}')"
    )


@pytest.mark.parametrize("answer", ["[]", '{"model": 1}', "Traceback"])
def test_an_answer_that_is_no_report_is_none(answer: str) -> None:
    assert "cannot be read" in why_not(f"say({answer!r}, '{{\"code\": 0}}')")


def test_a_process_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_process, "GRACE_SECONDS", 0.0)
    mark = tmp_path / "pid"
    code = f"open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    assert "longer than 2 s" in why_not(code, timeout=2.0)
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_one_that_gave_a_report_up_makes_the_next() -> None:
    given_up = "if not globals().get('again'):\n    again = True\n    say('{\"code\": -14}')\n    continue\n"
    with processes(given_up + saying("again")) as makers:
        with pytest.raises(ReportUnavailable, match=r"longer than 30 s \(NIGHTSWEEP_PLAN_TIMEOUT_SECONDS\)"):
            makers.make(REQUEST)
        assert makers.make(REQUEST).problems[0].message == "True"


def test_one_that_is_not_ready_in_time_goes_on_starting(tmp_path: Path) -> None:
    go = tmp_path / "go"
    slow = SERVER.replace("say('{", f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nsay('{{", 1)
    with processes(saying("os.getpid()"), server=slow) as makers:
        with pytest.raises(ReportUnavailable, match=r"not ready within 0\.01 s"):
            makers.check(REQUEST, 0.01)
        go.touch()
        assert makers.check(REQUEST, 30).problems != ()


def test_a_check_waits_its_turn_and_no_longer(tmp_path: Path) -> None:
    go = tmp_path / "go"
    started = f"open({str(tmp_path)!r} + f'/{{os.getpid()}}.began', 'w').close()"
    code = f"{started}\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{saying('1')}"
    with processes(code) as makers:
        threads = [threading.Thread(target=makers.make, args=(REQUEST,)) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        while len(list(tmp_path.glob("*.began"))) < AT_ONCE:
            threads[0].join(0.01)
        with pytest.raises(ReportUnavailable, match=r"busy with others for 0\.01 s"):
            makers.check(REQUEST, 0.01)
        go.touch()
        for thread in threads:
            thread.join(60)


def test_the_process_gets_none_of_the_services_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSWEEP_API_KEY", "a secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = "[n for n in os.environ if n.startswith('NIGHTSWEEP') or n == 'HF_HUB_OFFLINE']"
    with processes(saying(found)) as makers:
        assert makers.make(REQUEST).problems[0].message == "['HF_HUB_OFFLINE']"


def test_no_more_than_a_few_are_made_or_wait_at_once(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nsay({EMPTY!r}, '{{\"code\": 0}}')"
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
    makers.close()
    assert refused == ["6 plans are being made already; ask again in a minute."]
    assert reports == [FilesReport(model=None, data=None, problems=())] * (AT_ONCE + WAITING)
