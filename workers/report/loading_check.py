"""Loads a study's tokenizer and data in a process of its own, to see whether that ends the process.

Native libraries abort: a tokenizer that multiplies its text until there is no memory takes its process along,
and no exception tells. A worker that died before the study's first step may have died of that, or by chance.
So the next one asks here first: what ends the process of the check is the study's fault, and ends the study.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec, ModelSpec
from workers.contract import TrialOrder
from workers.errors import DataError, WorkerError

log = logging.getLogger(__name__)

_RUNS = 2
"""The process must end twice: once, somebody may have killed it."""
_NO_MEMORY = re.compile(r"memory allocation of \d+ bytes failed")
_STAGES = {
    "model": "loading the tokenizer",
    "train": "reading and tokenising the train data",
    "eval": "reading and tokenising the eval data",
}
_CODE = "import sys; sys.path.append(sys.argv[1]); from workers.report.loading_check import main; main()"
# The package's folder comes last in the path, and the current folder not at all (-P): whatever lies there
# must not stand in for a library.


def check_loading(order: TrialOrder) -> None:
    """Returns where loading the order's tokenizer and data does not end a process.

    Whatever else is wrong with them shows when they are loaded.

    Raises:
        DataError: It ended the process, every time.
    """
    length = order.recipe.max_length or order.data.max_length
    request = {
        "model": order.model.model_dump(mode="json"),
        "task": order.task,
        "data": order.data.model_copy(update={"max_length": length}).model_dump(mode="json"),
        "now": None if order.study_created_at is None else order.study_created_at.isoformat(),
        "limits": order.limits.model_dump(mode="json"),
    }
    for _ in range(_RUNS):
        code, stage, complaints = _run(json.dumps(request).encode() + b"\n")
        if code >= 0:
            if code > 0:  # a fault of this check, of which nothing follows
                log.warning("the check of a study's data failed:\n%s", complaints[-4000:])
            return
    log.error("loading a study's data ends the process:\n%s", complaints[-4000:])
    how = signal.Signals(-code).name
    if said := _NO_MEMORY.search(complaints):
        how += f", {said.group()}"
    raise DataError(
        f"A worker died before the study's first step. A process that only loads its tokenizer and data died "
        f"as well, {_RUNS} times, while {_STAGES.get(stage, 'it started')} ({how}). "
        f"A library cannot work with the tokenizer of {order.model.id} or with this data. Use another "
        "tokenizer or shorter rows, or raise NIGHTSWEEP_LOADING_MEMORY_GIB if memory ran out. The "
        "worker's log has the library's own message."
    )


def _run(request: bytes) -> tuple[int, str, str]:
    """Exit code (negative: the signal that ended it), the stage it was in, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSWEEP_")}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parents[2])
    command = (sys.executable, "-P", "-c", _CODE, root)
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, env=environment) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # its exit code says how it ended
                process.stdin.write(request)
                process.stdin.flush()
            stages = process.stdout.read().split()  # standard input stays open: the process ends with it
            code = process.wait()
        finally:
            process.kill()
        complaints.seek(0)
        return code, stages[-1].decode() if stages else "", complaints.read().decode(errors="replace")


def main() -> None:
    """Loads what the request on standard input names, and says on standard output which stage it is in.

    The process ends when standard input does, because then its worker is gone.
    """
    stages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    with contextlib.suppress(WorkerError):
        _load(request, stages)
    os._exit(0)  # not by way of libraries' own ends


def _end_with(parent: IO[bytes]) -> None:
    parent.read()
    os._exit(0)


def _load(request: dict[str, Any], stages: IO[str]) -> None:
    from workers.data.datasets import load_eval, load_train
    from workers.data.labels import read_labels
    from workers.device.memory import limited_memory
    from workers.report.base_reader import read_base

    model, data = ModelSpec.model_validate(request["model"]), DataSpec.model_validate(request["data"])
    limits = LoadingLimits.model_validate(request["limits"])
    now = None if request["now"] is None else datetime.fromisoformat(request["now"])
    print("model", file=stages)
    _, base = read_base(model, limits, request["task"])
    print("train", file=stages)
    with limited_memory(limits.memory_gib, "The train data cannot be loaded"):
        base = replace(base, labels=read_labels(data, base.task, limits.data_roots))
        train = load_train(data, base, now, limits.data_roots)
    print("eval", file=stages)
    with limited_memory(limits.memory_gib, "The eval data cannot be loaded"):
        load_eval(data, base, train.format, now, limits.data_roots)
