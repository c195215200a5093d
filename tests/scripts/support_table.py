"""Writes docs/reference/support.md from the full product of families, tasks and quantizations.

    python -m tests.scripts.support_table

Takes about ten minutes on one core. Prints each cell, and ends with an error where two ways of training
differ.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

from tests.support.workers.families import FAMILIES, build_family
from tests.support.workers.family_parity import Outcome, outcome_of
from tests.support.workers.support_table import PAGE, Cell, page_of


def main() -> None:
    torch.set_num_threads(1)  # as a worker
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {name: build_family(name, root / name) for name in FAMILIES}

        def find(cell: Cell) -> Outcome:
            name, task, quantization = cell
            outcome = outcome_of(name, folders[name], task, quantization, root)
            sys.stderr.write(f"{name}, {task}, {quantization}: {outcome.word}\n")
            return outcome

        PAGE.write_text(page_of(find))


if __name__ == "__main__":
    main()
