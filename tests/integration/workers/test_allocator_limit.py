"""Where torch's allocator really fails, the pack shrinks and not the trial.

The limit is the operating system's, on the memory that a process maps (`RLIMIT_DATA`). glibc's own pools
would blur it, so `MALLOC_MMAP_THRESHOLD_` has it map each large block for itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import ROOT
from tests.support.workers.models import build_tiny_base

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit and its accounts are Linux's")


@pytest.fixture(scope="module")
def wide_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training on one row of 64 tokens takes about 12 MB."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "wide", hidden_size=512, intermediate_size=2_048)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Rows of more than 64 tokens each."""
    file = tmp_path / "rows.jsonl"
    rows = (
        {"prompt": f"row {n}", "completion": " ".join(str(n * k) for k in range(1, 80))} for n in range(32)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_limited(
    folder: Path, base_dir: Path, data: Path, *, trials: int, more_bytes: int
) -> list[dict[str, Any]]:
    """What became of the trials under the limit, and without it."""
    command = [sys.executable, "-m", "tests.scripts.trials_under_limit"]
    arguments = [folder, base_dir, data, trials, more_bytes]
    run = subprocess.run(
        command + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    found: list[dict[str, Any]] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def test_a_pass_that_does_not_fit_shrinks_and_the_results_are_the_same(
    tmp_path: Path, wide_base_dir: Path, data_file: Path
) -> None:
    limited, unlimited = run_limited(tmp_path, wide_base_dir, data_file, trials=2, more_bytes=64 * 2**20)
    assert limited["misfits"] > 0
    assert unlimited["misfits"] == 0
    assert limited["statuses"] == unlimited["statuses"] == ["completed", "completed"]
    assert limited["values"] == pytest.approx(unlimited["values"], rel=1e-4)


def test_a_trial_of_which_not_one_row_fits_ends_out_of_memory(
    tmp_path: Path, wide_base_dir: Path, data_file: Path
) -> None:
    limited, unlimited = run_limited(tmp_path, wide_base_dir, data_file, trials=1, more_bytes=4 * 2**20)
    assert limited["statuses"] == ["out_of_memory"]
    assert limited["reasons"][0].startswith(
        "Out of memory training at micro-batch 1, on an example of 64 tokens, with LoRA rank 4"
    )
    assert unlimited["statuses"] == ["completed"]
