"""Metrics and losses of a study's own are accepted from the modules that the setting names, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_spaces.errors import Fault
from service.definitions.acceptance import check_definition
from service.embedded.environment import settings_environment
from service.settings import Settings

DOCUMENT: dict[str, Any] = {
    "name": "study",
    "model": {"id": "organisation/model"},
    "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
    "search": {"trials": 2, "space": {"learning_rate": {"min": 1e-5, "max": 1e-3}}},
    "metrics": {"profit": "my_metrics:profit"},
    "objective": {"metric": "profit", "direction": "maximize"},
}


def faults(tmp_path: Path, plugins: tuple[str, ...] | None) -> list[Fault]:
    (tmp_path / "rows.jsonl").touch()
    return check_definition(DOCUMENT, [tmp_path], plugins)[1]


def test_a_module_that_is_named_is_accepted_and_where_nobody_knows_any_is(tmp_path: Path) -> None:
    assert faults(tmp_path, ("other", "my_metrics")) == []
    assert faults(tmp_path, None) == []


@pytest.mark.parametrize(("plugins", "allowed"), [((), None), (("my_metric",), "a function of my_metric")])
def test_another_module_is_refused(tmp_path: Path, plugins: tuple[str, ...], allowed: str | None) -> None:
    (fault,) = faults(tmp_path, plugins)
    assert (fault.path, fault.value, fault.allowed) == ("metrics.profit", "my_metrics:profit", allowed)
    assert "a module that NIGHTSWEEP_PLUGINS does not name" in fault.message


def test_the_module_of_a_loss_is_refused_alike(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    document = DOCUMENT | {"losses": {"under": "my_losses:under"}, "recipe": {"loss": "under"}}
    _, (fault,) = check_definition(document, [tmp_path], ("my_metrics",))
    assert (fault.path, fault.value) == ("losses.under", "my_losses:under")
    assert fault.allowed == "a function of my_metrics"
    assert "a module that NIGHTSWEEP_PLUGINS does not name" in fault.message
    assert check_definition(document, [tmp_path], ("my_metrics", "my_losses"))[1] == []


def test_the_setting_is_a_list_of_modules_and_reaches_workers_and_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSWEEP_PLUGINS", "my_metrics, team.metrics,")
    settings = Settings(home=tmp_path)
    assert settings.loading_limits.plugins == ("my_metrics", "team.metrics")
    assert settings_environment(settings)["NIGHTSWEEP_PLUGINS"] == "my_metrics,team.metrics"
    with pytest.raises(ValueError, match="'my-metrics' is not the name of a module"):
        Settings(home=tmp_path, plugins="my-metrics")  # type: ignore[arg-type]
