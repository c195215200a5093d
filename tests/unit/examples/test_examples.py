"""The examples' files agree with the script that makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from search_spaces.tasks import TASKS
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "examples"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    command = [sys.executable, str(EXAMPLES / "make_data.py"), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return out


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_data_of_each_task_is_what_the_script_writes(regenerated: Path, task: str) -> None:
    for name in ("train.jsonl", "eval.jsonl"):
        assert (EXAMPLES / task / name).read_bytes() == (regenerated / task / name).read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_nothing_that_is_evaluated_was_trained_on(task: str) -> None:
    train, evaluated = (
        {
            json.dumps(next(iter(json.loads(line).values())))
            for line in (EXAMPLES / task / name).read_text().splitlines()
        }
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert (len(train), len(evaluated), train & evaluated) == (240, 60, set())


@pytest.mark.parametrize("base", ["encoder", "seq2seq"])
def test_a_base_fits_into_a_megabyte(base: str) -> None:
    assert sum(path.stat().st_size for path in (EXAMPLES / "bases" / base).iterdir()) < MEGABYTE
