"""A fault of the device ends the worker and no trial: what it has broken, no later trial could use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.workers.gpu_trials import Bases

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.support.workers.gpu_trials import DEVICE
from tests.support.workers.trials import trial_order
from workers.training.objectives import language
from workers.device.memory import is_device_fault
from workers.pack.pack import Pack

folder, base = Path(sys.argv[1]), Path(sys.argv[2])
events = []
pack = Pack(events.append, device=DEVICE, slots=2)
for number in (1, 2):
    pack.admit(trial_order(folder, base, attempt_id=number))
pack.step()
whole = language.collate


def broken(examples, pad_token_id):
    batch = whole(examples, pad_token_id)
    return replace(batch, input_ids=batch.input_ids + 10**6)  # beyond the embedding


language.collate = broken
try:
    pack.step()
except Exception as error:
    print("raised", type(error).__name__, is_device_fault(error))
print("outcomes", sum(type(event).__name__ == "TrialOutcome" for event in events))
print("held", len(pack.running_attempts))
sys.stdout.flush()
"""


def test_a_device_fault_ends_no_trial(bases: Bases, tmp_path: Path) -> None:
    """In a process of its own, because the fault breaks the context for good."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(bases.folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines == ["raised AcceleratorError True", "outcomes 0", "held 2"], done.stderr[-2000:]
