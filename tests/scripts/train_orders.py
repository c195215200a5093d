"""Trains orders in a process of its own, as another worker would: `python -m tests.scripts.train_orders`.

Reads from standard input, pickled: packs to run one after the other, each as its slots and its orders.
Writes to standard output, pickled: the events of each.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence

from tests.support.checkout import ROOT
from workers.contract import Event, TrialOrder


def train_elsewhere(packs: Sequence[tuple[int | None, Sequence[TrialOrder]]]) -> list[list[Event]]:
    """Has a fresh process run these packs, and returns the events of each."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.scripts.train_orders"],
        input=pickle.dumps(packs),
        capture_output=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr.decode()
    events: list[list[Event]] = pickle.loads(run.stdout)
    return events


def main() -> None:
    """The process."""
    import torch

    from tests.support.workers.packs import Recorder

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    packs = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([Recorder(slots).run(*orders) for slots, orders in packs]))


if __name__ == "__main__":
    main()
