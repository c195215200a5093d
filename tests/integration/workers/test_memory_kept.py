"""A worker that has seen two hundred trials holds no more memory than one that has seen twenty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT


def test_two_hundred_trials_leave_no_more_memory_taken_than_twenty(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.scripts.many_trials",
        str(tmp_path),
        str(tiny_base_dir),
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert sum(found["statuses"].values()) == 200
    assert sorted(found["statuses"]) == ["completed", "diverged", "failed", "out_of_memory", "pruned"]
    for what in ("resident_bytes", "tensors"):
        assert found["last"][what] == pytest.approx(found["first"][what], rel=0.05)
