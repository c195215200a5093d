"""The dashboard's list of studies is read again when one of them has changed, and only then."""

from __future__ import annotations

import optuna
import pytest

from service.dashboard.study_list import StudyList
from service.optuna_store.storage import Storage


def test_the_list_is_read_once_and_again_after_each_change(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read = Storage.get_all_studies

    def counted(of: Storage) -> list[optuna.study._frozen.FrozenStudy]:
        nonlocal reads
        reads += 1
        return read(of)

    monkeypatch.setattr(Storage, "get_all_studies", counted)
    listed = StudyList.of(storage)
    study = optuna.create_study(storage=storage, study_name="a")
    assert [one.study_name for one in listed.get_all_studies()] == ["a"]
    study.ask()  # of trials the list says nothing
    assert [one.study_name for one in listed.get_all_studies()] == ["a"]
    assert reads == 1
    study.set_user_attr("model", "x")
    assert listed.get_all_studies()[0].user_attrs == {"model": "x"}
    study.set_user_attr("model", "longer")
    assert listed.get_all_studies()[0].user_attrs == {"model": "longer"}
    storage.set_study_system_attr(study._study_id, "preference", 1)
    assert listed.get_all_studies()[0].system_attrs != {}
    optuna.create_study(storage=storage, study_name="b")
    assert [one.study_name for one in listed.get_all_studies()] == ["a", "b"]
    optuna.delete_study(storage=storage, study_name="a")
    assert [one.study_name for one in listed.get_all_studies()] == ["b"]
    assert reads == 6
