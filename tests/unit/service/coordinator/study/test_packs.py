"""Whole studies on workers that train several trials at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from service.db.models import EventRow, Study
from service.optuna_store.studies import read_trials
from service.states import AttemptState, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import PackCapacity, Progress


def search(trials: int, **changes: Any) -> dict[str, Any]:
    return {**DEFINITION["search"], "algorithm": "random", "trials": trials, **changes}


def parallel(trials: int, **changes: Any) -> dict[str, Any]:
    return {"max_parallel_trials": trials, **changes}


@pytest.mark.parametrize("cpus", [1, 4])
def test_packs_fill_up_to_what_is_allowed_and_no_further(
    make_lab: Callable[..., CoordinatorLab], cpus: int
) -> None:
    lab = make_lab(cpus=cpus, slots=8)
    study_id = lab.submit(search=search(20), budget=parallel(6))
    most, fullest = 0, 0

    def look() -> None:
        nonlocal most, fullest
        most = max(most, lab.cluster.running)
        fullest = max([fullest, *lab.cluster.packs.values()])

    lab.run(study_id, each=look)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert [a.trial_number for a in lab.attempts()] == list(range(20))
    assert (most, fullest <= 8) == (6, True)
    assert lab.cluster.alive == []


def test_the_tokens_of_a_trials_passes_are_kept_with_its_attempt(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(patience=1000.0)
    lab.submit(search=search(1))
    lab.rounds(lambda: [a.state for a in lab.attempts()] == [AttemptState.RUNNING])
    (attempt,), (runner,) = lab.attempts(), lab.runners
    progress = {"attempt_id": attempt.id, "step": 1, "train_loss": 1.0, "learning_rate": 0.1}
    for seq, tokens in ((100, (30, 40)), (101, (60, 80)), (101, (1, 2))):  # the last one came before
        runner.events.on_progress(Progress(**progress, examples_seen=seq, tokens=tokens), seq)
    (attempt,) = lab.attempts()
    assert (attempt.tokens, attempt.padded_tokens) == (60, 80)


def test_trials_spread_over_all_workers_though_one_is_ready_first(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """A trial trains faster in a pack of two than in a pack of eight beside three idle workers."""
    lab = make_lab(cpus=4, slots=8, patience=1000.0, start_polls={"w1": 0, "w2": 2, "w3": 3, "w4": 2})
    lab.submit(search=search(16), recipe={"epochs": 8}, budget=parallel(8))
    lab.rounds(lambda: sum(lab.cluster.packs.values()) == 8)
    assert lab.cluster.packs == {"w1": 2, "w2": 2, "w3": 2, "w4": 2}


def test_trials_of_a_lost_worker_go_to_packs_with_room_and_wait_for_no_new_worker(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2, slots=8, start_polls={"w3": 1000})
    study_id = lab.submit(search=search(4), budget=parallel(4))
    lab.rounds(lambda: lab.cluster.running == 4)
    lab.cluster.kill("w2")
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert lab.cluster.started == ["w1", "w2"]
    assert {a.worker_id for a in lab.attempts() if a.ordinal == 2} == {"w1"}


def test_workers_that_no_trial_is_left_for_are_ended(make_lab: Callable[..., CoordinatorLab]) -> None:
    """Four workers with two trials each; once nothing is left to send out, an idle one goes at once."""
    lab = make_lab(cpus=4, slots=2)
    epochs = {"algorithm": "grid", "space": {"epochs": {"choices": [1, 2, 3, 4, 5, 6, 7, 8]}}}
    study_id = lab.submit(search=epochs, budget=parallel(8))
    lab.rounds(lambda: lab.cluster.running == 8)
    seen = set()

    def look() -> None:
        seen.add(len(lab.cluster.alive))
        assert all(lab.cluster.packs.values())

    lab.run(study_id, each=lambda: (lab.coordinator.round(), look())[1])
    assert seen >= {1, 4}
    assert lab.cluster.started == ["w1", "w2", "w3", "w4"]


def test_a_new_capacity_is_written_down_in_words(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1, slots=4)
    lab.run(lab.submit(search=search(4)))
    assert lab.events("worker_capacity") == ["w1 wants 4 trials at once: as measured"]


def test_a_capacity_says_what_was_predicted_and_what_was_measured(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.submit(search=search(4))
    lab.coordinator.round()
    [runner] = lab.runners
    for slots, predicted, measured in ((1, 3 * 2**30, None), (2, 2**30, 2**29), (3, 0, None)):
        runner.events.on_capacity(
            "w1",
            PackCapacity(
                slots=slots, reason="two would not fit.", predicted_bytes=predicted, measured_bytes=measured
            ),
        )
    assert lab.events("worker_capacity") == [
        "w1 wants 1 trial at once: two would not fit (memory: predicted 3.00 GiB)",
        "w1 wants 2 trials at once: two would not fit (memory: predicted 1.00 GiB, measured 0.50 GiB)",
        "w1 wants 3 trials at once: two would not fit",
    ]


def test_a_capacity_that_is_delivered_twice_is_written_down_once(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """The coordinator dies after it wrote it down and before it acknowledged."""
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(6))
    lab.rounds(lambda: lab.cluster.running == 1)
    for slots in (3, 2, 3):
        lab.cluster.announce("w1", slots)
        [runner] = lab.runners
        runner.events.on_capacity("w1", PackCapacity(slots=slots, reason="as measured"))
        lab.crash()
        lab.rounds(lambda: bool(lab.runners))
    lab.run(study_id)
    assert [e.split(" trials")[0] for e in lab.events("worker_capacity")] == [
        "w1 wants 3",
        "w1 wants 2",
    ]


def test_only_more_or_fewer_trials_than_ever_are_news(make_lab: Callable[..., CoordinatorLab]) -> None:
    """Where recipes differ, what fits changes with nearly every trial."""
    lab = make_lab(cpus=1)
    lab.submit(search=search(4))
    lab.coordinator.round()
    [runner] = lab.runners
    for worker_id, slots in [("w1", n) for n in (4, 5, 4, 6, 5, 3, 4, 6, 7)] + [("w11", 5)]:
        runner.events.on_capacity(worker_id, PackCapacity(slots=slots, reason="as measured"))
    said = [event.split(" trials")[0] for event in lab.events("worker_capacity")]
    assert said == ["w1 wants 4", "w1 wants 5", "w1 wants 6", "w1 wants 3", "w1 wants 7", "w11 wants 5"]


def test_only_the_data_of_a_capacity_is_read_and_never_its_words(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """Events of the version before have none: they stay as they are, and say nothing to the coordinator."""
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(4))
    lab.coordinator.round()
    with lab.database.write() as session:
        message = "w1 wants 9 trials at once: as measured"
        session.add(EventRow(study_id=study_id, kind="worker_capacity", message=message))
    [runner] = lab.runners
    for slots in (4, 4):
        runner.events.on_capacity("w1", PackCapacity(slots=slots, reason="as measured"))
    with lab.database.read() as session:
        rows = session.scalars(
            select(EventRow).where(EventRow.kind == "worker_capacity").order_by(EventRow.id)
        )
        assert [(row.message, row.data) for row in rows] == [
            (message, None),
            ("w1 wants 4 trials at once: as measured", {"worker_id": "w1", "slots": 4}),
        ]


def test_a_pack_that_shrinks_loses_no_order_that_was_on_its_way(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(search=search(12), budget=parallel(4))
    lab.rounds(lambda: lab.cluster.running == 4)
    waited = 0

    def shrink_and_grow() -> None:
        nonlocal waited
        waited += lab.cluster.waiting
        # Always between an order's dispatch and its admission.
        if lab.cluster.alive:
            lab.cluster.announce("w1", 1 if len(lab.cluster.orders) % 3 else 4)

    lab.run(study_id, each=shrink_and_grow)
    assert waited > 0
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert [(a.ordinal, a.state) for a in lab.attempts()] == [(1, AttemptState.COMPLETED)] * 12


def test_an_order_that_waits_in_a_shrunk_pack_is_cancelled_with_its_study(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(search=search(12), recipe={"epochs": 9}, budget=parallel(4))
    lab.rounds(lambda: lab.cluster.running == 1)
    lab.rounds(lambda: len(lab.cluster.orders) == 4)
    lab.cluster.announce("w1", 1)
    lab.coordinator.round()
    assert lab.cluster.waiting == 3
    with lab.database.write() as session:
        session.get_one(Study, study_id).cancel_requested = True
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.CANCELLED
    assert [a.state for a in lab.attempts()] == [AttemptState.CANCELLED] * 4


def test_what_the_definition_says_of_packs_is_in_every_order(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1, slots=8)
    most = 0

    def look() -> None:
        nonlocal most
        most = max([most, *lab.cluster.packs.values()])

    resources = {"trials_per_worker": 2, "gradient_checkpointing": True, "keep_decoded": "never"}
    lab.run(lab.submit(search=search(6), budget=parallel(6), resources=resources), each=look)
    orders = lab.cluster.orders
    assert {(o.trials_per_worker, o.gradient_checkpointing, o.keep_decoded) for o in orders} == {
        (2, True, "never")
    }
    assert most == 2


def test_a_definition_that_says_nothing_of_packs_leaves_it_to_the_worker(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.run(lab.submit(search=search(1)))
    [order] = lab.cluster.orders
    assert (order.trials_per_worker, order.gradient_checkpointing, order.resume_from) == (None, False, ())
    assert order.keep_decoded == "auto"


def test_a_lost_trial_goes_on_from_its_checkpoint(make_lab: Callable[..., CoordinatorLab]) -> None:
    """The rung at the checkpoint is evaluated again, so that none is lost; Optuna keeps what it has."""
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(1), budget=parallel(1, max_retries=5))
    for rung in (50, 75):
        lab.rounds(lambda rung=rung: rung in lab.rungs().get(0, {}))
        lab.cluster.kill(lab.cluster.alive[0])
    lab.run(study_id)
    attempts = lab.attempts()
    assert [a.state for a in attempts] == [AttemptState.LOST, AttemptState.LOST, AttemptState.COMPLETED]
    folders = [f"{a.artifact_dir}/checkpoint" for a in attempts]
    assert [o.resume_from for o in lab.cluster.orders] == [
        (),
        (folders[0],),
        (folders[1], folders[0]),
    ]
    assert lab.cluster.reported == [(1, 25), (1, 50), (2, 50), (2, 75), (3, 75), (3, 100)]
    assert list(lab.rungs()[0]) == [25, 50, 75, 100]
    # The date that a chat template writes is the study's, so that all three read the same rows.
    assert {o.study_created_at for o in lab.cluster.orders} == {lab.study(study_id).created_at}
    words = "training on cpu: 100 train rows, 10 eval rows"
    assert lab.events("attempt_running") == [
        words,
        f"{words}; resumed from a checkpoint after 50 examples",
        f"{words}; resumed from a checkpoint after 75 examples",
    ]


def test_behind_a_url_attempts_have_their_folders_and_checkpoints_there(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.settings = lab.settings.model_copy(update={"artifacts_url": "s3://bucket/nightsweep"})
    lab.coordinator = lab.new_coordinator()
    study_id = lab.submit(search=search(1))
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    lab.cluster.kill(lab.cluster.alive[0])
    lab.rounds(lambda: len(lab.cluster.orders) == 2)
    first, second = lab.cluster.orders
    assert first.artifact_dir == f"s3://bucket/nightsweep/{study_id}/0/1"
    assert (second.artifact_dir, second.resume_from) == (
        f"s3://bucket/nightsweep/{study_id}/0/2",
        (f"{first.artifact_dir}/checkpoint",),
    )


def test_a_resumed_trial_has_seen_what_its_checkpoint_had(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.submit(search=search(1))
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    lab.cluster.kill(lab.cluster.alive[0])
    lab.rounds(lambda: len(lab.events("attempt_running")) == 2)
    assert lab.cluster.reported[-1] == (1, 50)  # the second attempt has not yet said anything more
    assert lab.attempts()[-1].examples_seen == 50


@pytest.mark.parametrize(
    "pruning",
    [
        {"algorithm": "median", "min_examples": 25, "n_startup_trials": 2},
        {"algorithm": "asha", "min_examples": 25, "reduction_factor": 2, "n_min_trials": 1},
        {"algorithm": "hyperband", "min_examples": 25, "reduction_factor": 2},
    ],
    ids=lambda pruning: pruning["algorithm"],
)
def test_a_rung_that_is_reported_again_changes_no_decision_of_the_pruner(
    make_lab: Callable[..., CoordinatorLab], pruning: dict[str, Any]
) -> None:
    """Trials one after another, the worker killed after every third rung: all as if nothing had happened."""
    calm, stormy = make_lab(cpus=1), make_lab(cpus=1)
    study = {"search": search(10), "pruning": pruning, "budget": parallel(1, max_retries=100)}
    calm.run(calm.submit(**study))
    killed = 0

    def disturb() -> None:
        nonlocal killed
        if len(stormy.cluster.reported) >= 3 * (killed + 1) and any(stormy.cluster.packs.values()):
            stormy.cluster.kill(stormy.cluster.alive[0])
            killed += 1

    stormy.run(stormy.submit(**study), each=disturb)
    assert killed > 3
    assert stormy.values() == calm.values()
    assert stormy.rungs() == calm.rungs()
    assert {outcome for outcome, _, _ in calm.values().values()} == {"completed", "pruned"}


def test_a_trial_that_the_pruner_decided_against_is_pruned_though_its_worker_dies(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """It would otherwise be trained again, and successive halving judges a rung only once."""
    lab = make_lab(cpus=1)
    study_id = lab.submit(
        search=search(6),
        pruning={"algorithm": "asha", "min_examples": 25, "reduction_factor": 2, "n_min_trials": 1},
        budget=parallel(1),
    )
    lab.rounds(lambda: bool(lab.events("prune_decided")))
    lab.cluster.kill(lab.cluster.alive[0])
    lab.rounds(lambda: not any(a.state == AttemptState.RUNNING for a in lab.attempts()))
    [decided] = lab.events("prune_decided")
    last = lab.attempts()[-1]
    assert (last.state, last.reason) == (AttemptState.PRUNED, decided)
    told = read_trials(lab.storage, "s")[last.trial_number]
    assert (told.state, told.user_attrs["reason"]) == ("pruned", decided)
    lab.run(study_id)
    assert {a.ordinal for a in lab.attempts()} == {1}
    with lab.database.read() as session:
        assert session.scalars(select(Study)).one().state == StudyState.COMPLETED
