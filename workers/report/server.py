"""Makes one report after the other for the service, without importing torch again for each.

It says `{"ready": true}` on standard output once everything is imported. Then a line of JSON comes in on
standard input, `{"seconds": ..., "request": ...}` with a `ReportRequest`, and up to two go out: a
`FilesReport` or `{"failed": ...}`, and `{"code": ...}`, how its process ended. Each report is made in a fork,
so that neither memory nor anything a file did to a library lives on, and is given up after `seconds`.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import sys
import traceback
from typing import Any, BinaryIO

from transformers.utils import logging as transformers_logging

from search_spaces.data_report import ReportRequest
from workers.report.data_report import make_report

_LONGEST = 300
"""Characters of an error in the answer."""
IDLE_SECONDS = 600.0
"""The server ends when nobody has asked for so long: half a gigabyte is much to hold for nothing."""


def serve(answers: BinaryIO, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answers requests until standard input ends or nobody asks any more.

    Args:
        answers: What was standard output. Whatever a library prints must go elsewhere.
        idle_seconds: How long it waits for a request.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gc.freeze()  # what was imported stays shared with the forks
    requests = sys.stdin.buffer
    answers.write(b'{"ready": true}\n')
    answers.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        # One request at a time: nothing is ever left in the buffer when it is waited for.
        while selector.select(idle_seconds) and (line := requests.readline()):
            answers.write(json.dumps({"code": _in_a_fork(json.loads(line), answers)}).encode() + b"\n")
            answers.flush()


def _in_a_fork(asked: dict[str, Any], answers: BinaryIO) -> int:
    """Makes a report and writes it. Returns the exit code; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, asked["seconds"])
            report = make_report(ReportRequest.model_validate(asked["request"]))
            answers.write(report.model_dump_json().encode() + b"\n")
            answers.flush()
            code = 0
        except BaseException as error:  # noqa: BLE001  (a fork must never go on as its parent)
            traceback.print_exc()
            words = f"{type(error).__name__}: {error}"
            answers.write(json.dumps({"failed": words[:_LONGEST]}).encode() + b"\n")
            answers.flush()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
