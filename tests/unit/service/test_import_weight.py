"""The REST process needs neither torch nor Ray."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("ray", "torch", "transformers", "peft", "bitsandbytes", "datasets", "workers")


def test_the_api_imports_nothing_of_the_workers() -> None:
    code = f"import sys, service.app; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
