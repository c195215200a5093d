"""Trouble of the storage is no fault of a trial: it ends with the reason, and goes on once it is over."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from search_spaces.values.artifact_layout import ADAPTERS
from tests.scripts.train_orders import train_elsewhere
from tests.support.fakes.storage import Cut, FlakyFileSystem, failing, flaky_storage
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import trial_order
from workers.artifacts.folders import ArtifactFolder, LocalFolder, has_adapter
from workers.contract import OutcomeStatus, Report, TrialOrder, TrialOutcome, TrialStarted
from workers.pack.attempt import Attempt

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RECIPE = Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, lora_dropout=0.2, epochs=2, seed=11)
"""Six steps of eight examples."""


@pytest.fixture
def order(tmp_path: Path, tiny_base_dir: Path) -> TrialOrder:
    """Each second step reaches a rung."""
    return trial_order(tmp_path, tiny_base_dir, recipe=RECIPE, every_examples=16)


@pytest.fixture
def storage() -> Iterator[type[FlakyFileSystem]]:
    with flaky_storage() as made:
        yield made


def next_attempt(order: TrialOrder) -> TrialOrder:
    place = order.artifact_dir
    parent, _, number = place.rpartition("/")
    return replace(
        order,
        attempt_id=order.attempt_id + 1,
        artifact_dir=f"{parent}/{int(number) + 1}",
        resume_from=(f"{place}/checkpoint",),
    )


def undisturbed(order: TrialOrder, tmp_path: Path) -> Recorder:
    whole = Recorder()
    whole.run(replace(order, attempt_id=9, artifact_dir=str(tmp_path / "whole"), resume_from=()))
    return whole


def assert_goes_on_as_if_nothing_had_happened(
    before: Recorder, order: TrialOrder, whole: Recorder, *, at: int
) -> TrialOutcome:
    """The next attempt resumes, and both together report what the undisturbed one did."""
    after = Recorder()
    after.run(next_attempt(order))
    number = order.attempt_id + 1
    assert after.of(number, TrialStarted)[0].resumed_at_examples == at
    told = {r.rung: r.metrics for r in (*before.of(number - 1, Report), *after.of(number, Report))}
    assert told == {r.rung: r.metrics for r in whole.of(9, Report)}
    outcome, expected = after.outcomes()[number], whole.outcomes()[9]
    assert (outcome.status, outcome.value) == (OutcomeStatus.COMPLETED, expected.value)
    return outcome


def test_an_adapter_is_complete_with_peft_s_configuration_whatever_comes_beside_it(
    storage: type[FlakyFileSystem],
) -> None:
    written: list[str] = []
    storage.fault = staticmethod(
        lambda operation, path: written.append(path.rpartition("/")[2]) if operation == "put" else None
    )
    files = {"adapter_model.safetensors": b"w", "adapter_config.json": b"{}", "config.json": b"{}"}
    place = ArtifactFolder("flaky://bucket/study/0/1").save_adapter("best", lambda: files)
    assert (written[-1], sorted(written)) == ("adapter_config.json", sorted(files))
    assert has_adapter(place)


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EACCES", "EIO", "ENOENT", "EDQUOT"])
def test_an_adapter_that_cannot_be_written_is_trouble_of_the_storage_and_the_trial_goes_on(
    order: TrialOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    whole = undisturbed(order, tmp_path)
    number = getattr(errno, error)
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 1)

    put_folder = LocalFolder.put_folder

    def refuse(self: LocalFolder, name: str, files: Mapping[str, bytes]) -> None:
        if name in ADAPTERS:
            raise OSError(number, os.strerror(number), str(self.path / name))
        put_folder(self, name, files)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "put_folder", refuse)
        recorder.run()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.storage_fault, outcome.fatal_to_study) == (
        OutcomeStatus.FAILED,
        True,
        False,
    )
    assert outcome.reason == (
        f"The best adapter cannot be written to {order.artifact_dir}: {os.strerror(number)}."
    )
    assert_goes_on_as_if_nothing_had_happened(recorder, order, whole, at=32)
    assert not any(Path(order.artifact_dir).glob("**/checkpoint"))


def test_the_mates_of_a_trial_that_cannot_write_train_on(
    order: TrialOrder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    mate = trial_order(tmp_path, tiny_base_dir, attempt_id=2, recipe=RECIPE, every_examples=16)
    Path(order.artifact_dir).parent.mkdir(parents=True)
    Path(order.artifact_dir).write_text("a file in the folder's place")
    recorder = Recorder(slots=2)
    recorder.run(order, mate)
    outcomes = recorder.outcomes()
    assert (outcomes[1].status, outcomes[1].storage_fault) == (OutcomeStatus.FAILED, True)
    assert (outcomes[2].status, outcomes[2].storage_fault) == (OutcomeStatus.COMPLETED, False)


def test_a_folder_that_vanishes_in_mid_trial_is_not_made_anew_behind_everybodys_back(
    order: TrialOrder, tmp_path: Path
) -> None:
    """What was the best so far would be missing from it."""
    whole = undisturbed(order, tmp_path)
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 2)
    shutil.rmtree(tmp_path / "artifacts")
    recorder.run()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.storage_fault) == (OutcomeStatus.FAILED, True)
    assert outcome.reason.startswith(f"The artifact folder {order.artifact_dir} has disappeared")
    assert_goes_on_as_if_nothing_had_happened(recorder, order, whole, at=0)


def test_a_best_adapter_that_is_gone_at_the_end_is_no_completed_trial(
    order: TrialOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = undisturbed(order, tmp_path)
    complete = Attempt.complete
    best = Path(order.artifact_dir) / "best"

    def vanishes(self: Attempt, device: object) -> TrialOutcome:
        shutil.rmtree(best)
        return complete(self, device)  # type: ignore[arg-type]

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "complete", vanishes)
        outcome = recorder.outcome(order)
    assert outcome.storage_fault
    assert outcome.reason.startswith(f"The best adapter has disappeared from {best}, where it was saved at ")
    # Its checkpoint speaks of the adapter that is gone, so only the beginning brings another.
    assert_goes_on_as_if_nothing_had_happened(recorder, order, whole, at=0)
    assert f"cannot be used: the trial's best adapter is gone from {best}" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0777", "nightsweep-test", str(folder)]
    mount = shutil.which("mount")
    made = None if mount is None else subprocess.run(command, capture_output=True, text=True, check=False)
    if made is None or made.returncode:
        pytest.skip(f"no small disk could be mounted: {'no mount' if made is None else made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_loses_nothing_once_there_is_room_again(
    order: TrialOrder, tmp_path: Path, small_disk: Path
) -> None:
    whole = undisturbed(order, tmp_path)
    order = replace(order, artifact_dir=str(small_disk / "1"))
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 1)
    others = small_disk / "others"
    with pytest.raises(OSError, match="No space left"):
        others.write_bytes(bytes(1 << 21))
    recorder.run()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.storage_fault) == (OutcomeStatus.FAILED, True)
    assert "No space left on device" in outcome.reason
    assert not list(small_disk.glob("1/.*"))  # nothing half written
    others.unlink()
    # No checkpoint could be written at the second rung, so it goes on from the first.
    assert_goes_on_as_if_nothing_had_happened(recorder, order, whole, at=16)


# -- behind a URL


def test_a_trial_behind_a_url_trains_the_same_numbers_and_leaves_its_adapters_there_alone(
    order: TrialOrder, tmp_path: Path, storage: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = undisturbed(order, tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    order = replace(order, artifact_dir="flaky://bucket/study/0/1")
    recorder = Recorder()
    outcome = recorder.outcome(order)
    assert [r.metrics for r in recorder.of(1, Report)] == [r.metrics for r in whole.of(9, Report)]
    expected = whole.outcomes()[9]
    assert (outcome.status, outcome.value) == (OutcomeStatus.COMPLETED, expected.value)
    for place, local in (
        (outcome.best_adapter_dir, expected.best_adapter_dir),
        (outcome.last_adapter_dir, expected.last_adapter_dir),
    ):
        assert place is not None
        assert local is not None
        for file in Path(local).iterdir():
            assert storage().cat_file(f"{place}/{file.name}") == file.read_bytes()
    assert sorted(storage.store) == [
        f"/bucket/study/0/1/{which}/adapter_{file}"
        for which in ("best", "last")
        for file in ("config.json", "model.safetensors")
    ]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Cut("reset by peer")])
def test_an_upload_that_is_cut_off_costs_the_attempt_and_nothing_else(
    order: TrialOrder, tmp_path: Path, storage: type[FlakyFileSystem], error: Exception
) -> None:
    whole = undisturbed(order, tmp_path)
    order = replace(order, artifact_dir="flaky://bucket/study/0/1")
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 1)

    def fault(operation: str, path: str) -> None:
        if operation == "put" and "/best/" in path:
            raise error

    storage.fault = staticmethod(fault)
    recorder.run()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.storage_fault) == (OutcomeStatus.FAILED, True)
    assert outcome.reason.startswith(
        "flaky://bucket/study/0/1/best does not accept adapter_model.safetensors: "
    )
    storage.fault = staticmethod(failing("nothing"))
    assert_goes_on_as_if_nothing_had_happened(recorder, order, whole, at=32)
    assert not any("checkpoint" in path for path in storage.store)


def test_a_storage_that_does_not_answer_at_the_start_keeps_the_checkpoint_for_the_next_attempt(
    order: TrialOrder, tmp_path: Path, storage: type[FlakyFileSystem]
) -> None:
    whole = undisturbed(order, tmp_path)
    order = replace(order, artifact_dir="flaky://bucket/study/0/1")
    first = Recorder()
    first.pack.admit(order)
    first.run_until(lambda: len(first.of(1, Report)) == 2)
    storage.fault = staticmethod(failing("list", error=Cut("no route to host")))
    second = Recorder()
    outcome = second.outcome(next_attempt(order))
    assert (outcome.status, outcome.storage_fault) == (OutcomeStatus.FAILED, True)
    assert "no route to host" in outcome.reason
    storage.fault = staticmethod(failing("nothing"))
    assert_goes_on_as_if_nothing_had_happened(first, order, whole, at=32)


def test_a_trial_goes_on_in_another_process_from_what_lies_behind_a_url(
    order: TrialOrder, tmp_path: Path
) -> None:
    whole = undisturbed(order, tmp_path)
    order = replace(order, artifact_dir=f"file://{tmp_path}/shared/1")
    first = Recorder()
    first.pack.admit(order)
    first.run_until(lambda: len(first.of(1, Report)) == 2)
    (events,) = train_elsewhere([(1, [next_attempt(order)])])
    elsewhere = Recorder()
    elsewhere.events = events
    assert elsewhere.of(2, TrialStarted)[0].resumed_at_examples == 32
    outcome = elsewhere.outcomes()[2]
    assert (outcome.status, outcome.value) == (OutcomeStatus.COMPLETED, whole.outcomes()[9].value)
    assert [r.metrics for r in elsewhere.of(2, Report)] == [r.metrics for r in whole.of(9, Report)]
    found = sorted(
        str(p.relative_to(tmp_path / "shared")) for p in (tmp_path / "shared").rglob("*.safetensors")
    )
    assert {path.split("/")[1] for path in found} <= {"best", "last"}
