"""A study that ran when the version before went down goes on from the checkpoint that it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from search_spaces.definition import ModelSpec
from service.db.models import Attempt, Study
from service.optuna_store.studies import read_trials
from tests.support.service.coordinator import CoordinatorLab
from tests.support.version_before import WRITTEN_AT, VersionBefore, read_json
from tests.support.workers.pack_cluster import PackCluster
from workers.artifacts.folders import has_adapter
from workers.base.base_model import LoadedBase, load_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MOVES = (
    "UPDATE attempts SET artifact_dir = replace(artifact_dir, :before, :now)",
    # Not the model: a checkpoint is gone on from by trials whose definition names the same one.
    "UPDATE studies SET definition = json_replace(definition, '$.data.train', :now || '/train.jsonl',"
    " '$.data.eval', :now || '/eval.jsonl')",
    "UPDATE studies SET cancel_requested = true WHERE name IN ('queued-a', 'queued-b')",
)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorLab]:
    version_before = VersionBefore.unpacked(tmp_path)
    assert version_before.nightsweep("db", "upgrade").exit_code == 0

    def moved(spec: ModelSpec, *limits: Any, **options: Any) -> LoadedBase:
        return load_base(spec.model_copy(update={"id": str(tmp_path / "base")}), *limits, **options)

    monkeypatch.setattr("workers.pack.loaded.load_base", moved)
    # The checkpoint names the best adapter where it was written, which a trial that goes on does not read.
    monkeypatch.setattr(
        "workers.pack.attempt.has_adapter",
        lambda place: has_adapter(place.replace(WRITTEN_AT, str(tmp_path))),
    )
    home = version_before.home
    cluster = PackCluster(slots=1)
    opened = CoordinatorLab(home, cluster, database_url=f"sqlite:///{home / 'nightsweep.db'}")  # type: ignore[arg-type]
    with opened.database.write() as session:
        for statement in MOVES:
            session.execute(text(statement), {"before": WRITTEN_AT, "now": str(tmp_path)})
    yield opened
    opened.close()


def test_a_trial_goes_on_from_the_checkpoint_of_the_version_before(lab: CoordinatorLab) -> None:
    """Its next rungs are those that the worker of that version came to from the same checkpoint."""
    expected = read_json("resumed.json")
    rungs = {report["rung"]: report["eval_loss"] for report in expected["reports"]}

    def trained() -> dict[int, float]:
        return dict(read_trials(lab.storage, "running")[0].rungs)

    lab.rounds(lambda: trained().keys() >= rungs.keys(), limit=1000)
    assert {rung: trained()[rung] for rung in rungs} == pytest.approx(rungs, rel=1e-4)
    with lab.database.read() as session:
        running = select(Study.id).where(Study.name == "running").scalar_subquery()
        attempts = session.scalars(select(Attempt).where(Attempt.study_id == running).order_by(Attempt.id))
        lost, resumed = attempts.all()
    assert (lost.state, resumed.ordinal) == ("lost", 2)
    assert resumed.resumed_at_examples == expected["resumed_at_examples"]
