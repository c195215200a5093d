"""Where the migrations lie: beside the packages in a checkout, inside the package in a wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from service.errors import SchemaOutOfDate
from service.maintenance import schema
from tests.support.checkout import ROOT

CHECKOUT = ROOT


def test_in_a_checkout_they_lie_beside_the_packages() -> None:
    assert schema.migrations_dir() == CHECKOUT / "migrations"


def test_in_a_wheel_they_lie_in_the_folder_that_the_build_puts_them_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    folder = tmp_path / build["targets"]["wheel"]["force-include"]["migrations"]
    folder.mkdir(parents=True)
    (folder / "env.py").touch()
    installed = tmp_path / Path(schema.__file__).relative_to(CHECKOUT)
    monkeypatch.setattr(schema, "__file__", str(installed))
    assert schema.migrations_dir() == folder


def test_an_installation_without_them_says_where_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "__file__", str(tmp_path / "service" / "maintenance" / "schema.py"))
    with pytest.raises(SchemaOutOfDate, match="service/_migrations"):
        schema.migrations_dir()
