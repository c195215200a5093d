"""No process of the service imports what it does without: `serve` starts Ray before anything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "service.app": (
        "ray",
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "datasets",
        "workers",
        "optuna_dashboard",
        "sklearn",
        "pandas",
        "scipy",
    ),
    "service.embedded.supervisor": ("ray", "fastapi", "alembic", "optuna", "numpy"),
    "service.coordinator.process": (
        "torch",
        "fastapi",
        "optuna_dashboard",
        "sklearn",
        "pandas",
        "plotly",
        "scipy",
    ),
}


@pytest.mark.parametrize("module", HEAVY)
def test_a_process_of_the_service_imports_nothing_heavy_that_it_does_without(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY[module]!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
