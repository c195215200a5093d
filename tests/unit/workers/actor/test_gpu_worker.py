"""The worker's calls, on the plain class: idempotent orders, slots, waiting, verdicts, long polls."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from tests.support.fakes.pack import FakePack
from tests.support.waiting import wait_until
from tests.support.workers.trials import of_type, trial_order, worker_spec
from workers.actor import gpu_worker
from workers.actor.gpu_worker import GpuWorker
from workers.contract import (
    Decision,
    Event,
    OutcomeStatus,
    PackCapacity,
    Report,
    Stalled,
    TrialOrder,
    TrialOutcome,
    Verdict,
)
from workers.device.heartbeat import Heartbeat

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DEADLINE_S = 60.0

Make = Callable[..., TrialOrder]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set in place of ending the process, with which the tests would end, too."""
    event = threading.Event()
    monkeypatch.setattr(gpu_worker, "_end_process", lambda status: event.set())
    return event


@pytest.fixture
def worker(ended: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuWorker]:
    """One whose pack trains nothing."""

    def make_pack(worker: GpuWorker) -> FakePack:
        worker._device, worker._device_id, worker._threads = "cpu", None, None
        return FakePack(worker._record)

    monkeypatch.setattr(GpuWorker, "_make_pack", make_pack)
    worker = GpuWorker(worker_spec("w1"))
    yield worker
    worker.shutdown()
    assert has_ended(worker, ended)


@pytest.fixture
def pack(worker: GpuWorker) -> FakePack:
    assert isinstance(worker._pack, FakePack)
    return worker._pack


@pytest.fixture
def order(tmp_path: Path) -> Make:
    return lambda attempt_id, base="base": trial_order(tmp_path, Path(base), attempt_id=attempt_id)


def has_ended(worker: GpuWorker, ended: threading.Event) -> bool:
    """Waits for the worker to end its process, and for its threads: none may outlive the fixture `ended`."""
    for thread in (worker._watching, worker._training):
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return ended.is_set()


def follow(worker: GpuWorker, until: type, study_id: str = "study") -> list[Event]:
    """Polls and acknowledges until an event of a type arrives."""
    seen: list[Event] = []
    after, deadline = 0, time.monotonic() + DEADLINE_S
    while not of_type(seen, until):
        assert time.monotonic() < deadline
        for numbered in worker.events(study_id, after, timeout_s=1.0) or ():
            after = numbered.seq
            seen.append(numbered.event)
    return seen


def test_the_module_is_light_to_import() -> None:
    heavy = "[m for m in ('torch', 'ray', 'peft') if m in sys.modules]"
    code = f"import sys, workers.actor.gpu_worker; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_order_is_trained_to_its_outcome_and_frees_the_slot(
    ended: threading.Event, tmp_path: Path, tiny_base_dir: Path
) -> None:
    """With the real pack."""
    worker = GpuWorker(worker_spec("w1"))
    assert worker.info().free_slots == 1
    assert worker.submit(trial_order(tmp_path, tiny_base_dir)) is True
    assert worker.info().running_attempts == (1,)
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert outcome.status is OutcomeStatus.COMPLETED
    info = worker.info()
    assert (info.worker_id, info.device, info.running_attempts, info.base) == (
        "w1",
        "cpu",
        (),
        f"{tiny_base_dir} nf4",
    )
    assert info.free_slots == info.slots >= 1
    worker.shutdown()
    assert has_ended(worker, ended)


def test_the_same_attempt_again_is_accepted_and_changes_nothing(
    worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    assert [worker.submit(order(1)), worker.submit(order(1))] == [True, True]
    wait_until(lambda: pack.admitted == [1])
    pack.finish(1)
    follow(worker, TrialOutcome)
    assert worker.submit(order(1)) is True
    assert (worker.info().free_slots, pack.admitted) == (1, [1])


def test_an_order_without_a_free_slot_is_refused_and_a_verdict_frees_it(
    worker: GpuWorker, order: Make
) -> None:
    assert [worker.submit(order(1)), worker.submit(order(2))] == [True, False]
    assert worker.info().free_slots == 0
    assert worker.verdict(Verdict(attempt_id=1, decision=Decision.PRUNE, reason="poor")) is True
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.PRUNED, "poor")
    assert worker.verdict(Verdict(attempt_id=1, decision=Decision.STOP, reason="late")) is False
    assert worker.submit(order(2)) is True


def test_an_order_for_another_base_is_refused_while_trials_are_live(
    worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    pack.resize(4)
    assert [worker.submit(order(1)), worker.submit(order(2, base="other"))] == [True, False]
    wait_until(lambda: pack.admitted == [1])
    pack.finish(1)
    follow(worker, TrialOutcome)
    assert worker.submit(order(2, base="other")) is True


def test_a_pack_that_grows_takes_more_and_says_so(worker: GpuWorker, pack: FakePack, order: Make) -> None:
    worker.submit(order(1))
    pack.resize(3)
    (capacity,) = of_type(follow(worker, PackCapacity), PackCapacity)
    assert capacity == PackCapacity(slots=3, reason="as measured")
    info = worker.info()
    assert (info.slots, info.free_slots) == (3, 2)
    assert [worker.submit(order(n)) for n in (2, 3, 4)] == [True, True, False]
    wait_until(lambda: pack.admitted == [1, 2, 3])


def test_orders_that_come_after_a_pack_has_shrunk_wait_for_their_turn(
    worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    """They were sent for slots that had been announced: refusing them would make lost attempts of them."""
    pack.resize(4)
    worker.submit(order(1))
    wait_until(lambda: pack.admitted == [1])
    pack.resize(1)
    assert [worker.submit(order(n)) for n in (2, 3, 4, 5)] == [True, True, True, False]
    info = worker.info()
    assert (info.slots, info.free_slots, info.running_attempts) == (1, 0, (1, 2, 3, 4))
    for attempt_id in (1, 2, 3):
        assert pack.admitted == list(range(1, attempt_id + 1))
        pack.finish(attempt_id)
        wait_until(lambda last=attempt_id + 1: pack.admitted[-1] == last)


@pytest.mark.parametrize("told_by", ["an event", "info", "an answer"])
def test_every_number_of_slots_that_anybody_was_told_is_kept_to(
    worker: GpuWorker, pack: FakePack, order: Make, told_by: str
) -> None:
    """Whoever reads the slots may send that many orders, whatever the pack finds out in the meantime."""
    if told_by == "an event":
        pack.resize(2)
    else:
        pack.slots = 2
        worker.info() if told_by == "info" else worker.submit(order(1))
    pack.resize(1)
    assert [worker.submit(order(n)) for n in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize(
    ("decision", "status"),
    [(Decision.PRUNE, OutcomeStatus.PRUNED), (Decision.STOP, OutcomeStatus.CANCELLED)],
)
def test_an_order_that_still_waits_ends_by_a_verdict_with_one_outcome(
    worker: GpuWorker, pack: FakePack, order: Make, decision: Decision, status: OutcomeStatus
) -> None:
    pack.resize(3)
    worker.submit(order(1))
    wait_until(lambda: pack.admitted == [1])
    pack.resize(1)
    worker.submit(order(2))
    worker.submit(order(3))
    for reason in ("first", "second"):
        worker.verdict(Verdict(attempt_id=2, decision=decision, reason=reason))
    wait_until(lambda: worker.info().running_attempts == (1, 3))
    pack.finish(1)
    wait_until(lambda: pack.admitted == [1, 3])
    pack.finish(3)
    wait_until(lambda: worker.info().running_attempts == ())
    outcomes = of_type([numbered.event for numbered in worker.events("study", 0) or ()], TrialOutcome)
    assert [(o.attempt_id, o.status, o.reason) for o in outcomes] == [
        (2, status, "first"),
        (1, OutcomeStatus.COMPLETED, "trained to the end"),
        (3, OutcomeStatus.COMPLETED, "trained to the end"),
    ]


@pytest.mark.parametrize(("decision", "kept"), [(Decision.STOP, False), (Decision.PAUSE, True)])
def test_an_order_that_still_waits_leaves_checkpoints_of_earlier_attempts_only_if_they_may_be_of_use(
    worker: GpuWorker, pack: FakePack, order: Make, tmp_path: Path, decision: Decision, kept: bool
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    pack.resize(2)
    worker.submit(order(1))
    wait_until(lambda: pack.admitted == [1])
    pack.resize(1)
    worker.submit(replace(order(2), resume_from=(str(checkpoint),)))
    worker.verdict(Verdict(attempt_id=2, decision=decision, reason="enough"))
    wait_until(lambda: worker.info().running_attempts == (1,))
    assert checkpoint.exists() is kept
    pack.finish(1)
    wait_until(lambda: worker.info().running_attempts == ())


def test_a_verdict_that_comes_before_the_trial_has_started_counts(worker: GpuWorker, order: Make) -> None:
    worker.submit(order(1))
    worker.verdict(Verdict(attempt_id=1, decision=Decision.STOP, reason="cancelled by a person"))
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.CANCELLED, "cancelled by a person")


def test_a_worker_that_shuts_down_refuses_orders(worker: GpuWorker, order: Make) -> None:
    worker.shutdown()
    assert worker.submit(order(1)) is False


def test_a_worker_that_nobody_polls_ends_itself(ended: threading.Event) -> None:
    worker = GpuWorker(worker_spec("orphan", orphan_timeout_s=0.1))
    assert has_ended(worker, ended)


def test_a_worker_that_is_polled_does_not_end_itself(ended: threading.Event) -> None:
    worker = GpuWorker(worker_spec("polled", orphan_timeout_s=1.0))
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        worker.events("study", 0, timeout_s=0.2)
    assert not ended.is_set()
    worker.shutdown()
    assert has_ended(worker, ended)


def test_a_training_thread_that_breaks_ends_the_process(
    worker: GpuWorker, pack: FakePack, order: Make, ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(order: object) -> None:
        raise SystemError("the pack itself broke")

    monkeypatch.setattr(pack, "admit", broken)
    worker.submit(order(1))
    assert ended.wait(DEADLINE_S)


def test_an_empty_pack_without_a_slot_ends_the_process_in_place_of_waiting_for_ever(
    worker: GpuWorker, pack: FakePack, order: Make, ended: threading.Event
) -> None:
    pack.resize(2)
    pack.resize(0)
    worker.submit(order(1))
    assert ended.wait(DEADLINE_S)


def test_a_training_thread_that_hangs_is_told_while_the_worker_answers(
    ended: threading.Event, order: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    class HangingPack(FakePack):
        """Its first passes take no time, and the next one never ends."""

        heartbeat: Heartbeat

        def step(self) -> None:
            for _ in range(2):
                with self.heartbeat.passing("training"):
                    pass
            with self.heartbeat.passing("training"):
                release.wait(DEADLINE_S)

    def make_pack(worker: GpuWorker) -> FakePack:
        worker._device, worker._device_id, worker._threads = "cpu", None, None
        pack = HangingPack(worker._record)
        pack.heartbeat = worker._heartbeat
        return pack

    monkeypatch.setattr(GpuWorker, "_make_pack", make_pack)
    worker = GpuWorker(worker_spec("w1", training_silence_s=0.2))
    assert worker.submit(order(1)) is True
    (stalled,) = of_type(follow(worker, Stalled), Stalled)
    assert stalled.reason.startswith("no training pass ended for ")
    assert worker.info().running_attempts == (1,)  # it answers still
    worker.shutdown()
    release.set()
    assert has_ended(worker, ended)


# -- the pool --------------------------------------------------------------------------------------


def of_study(order: TrialOrder, study_id: str) -> TrialOrder:
    return replace(order, study_id=study_id)


def train_one(worker: GpuWorker, pack: FakePack, order: TrialOrder) -> None:
    """An order from its arrival to its acknowledged outcome."""
    assert worker.submit(order) is True
    wait_until(lambda: order.attempt_id in pack.admitted)
    pack.finish(order.attempt_id)
    wait_until(lambda: worker.info().running_attempts == ())


def test_a_worker_is_given_to_the_study_that_asks_first(worker: GpuWorker) -> None:
    assert worker.release("study") is not None
    answers = [worker.assign(study_id) for study_id in ("first", "second", "first")]
    assert [None if info is None else info.study_id for info in answers] == ["first", None, "first"]


def test_two_studies_that_ask_at_once_never_both_get_it(worker: GpuWorker) -> None:
    for _ in range(20):
        holder = worker.info().study_id
        assert holder is not None
        assert worker.release(holder) is not None
        answers: dict[str, object] = {}
        start = threading.Barrier(4)

        def ask(study_id: str, start: threading.Barrier, answers: dict[str, object]) -> None:
            start.wait()
            answers[study_id] = worker.assign(study_id)

        threads = [threading.Thread(target=ask, args=(str(n), start, answers)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(answer is not None for answer in answers.values()) == 1


def test_a_released_worker_has_nothing_of_its_study_but_the_base(
    worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    train_one(worker, pack, order(7))
    pack.resize(3)
    waiting = worker.release("study")
    assert waiting is not None
    assert (waiting.study_id, waiting.base, waiting.newest_attempt) == (None, "base", None)
    assert waiting.slots == 1
    taken = worker.assign("next")
    assert taken is not None
    assert taken.study_id == "next"
    assert worker.events("next", 0) == ()
    train_one(worker, pack, of_study(order(7), "next"))  # attempts of another study are not known
    assert pack.admitted == [7, 7]
    assert [n.seq for n in worker.events("next", 0) or ()] == [1]


def test_what_one_study_asks_for_is_nothing_to_another(
    worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    train_one(worker, pack, order(1))
    assert worker.events("other", 1) is None
    assert worker.submit(of_study(order(2), "other")) is False
    assert worker.assign("other") is None
    unmoved = worker.release("other")
    assert unmoved is not None
    assert unmoved.study_id == "study"
    assert len(worker.events("study", 0) or ()) == 1  # the event that "other" acknowledged is there


def test_a_worker_with_an_order_is_not_released(worker: GpuWorker, order: Make) -> None:
    worker.submit(order(1))
    unmoved = worker.release("study")
    assert unmoved is not None
    assert (unmoved.study_id, unmoved.running_attempts) == ("study", (1,))


@pytest.mark.parametrize("changes", [{"metrics": {"profit": "m:f"}}, {"losses": {"x": "m:f"}}])
def test_a_worker_that_ran_functions_of_a_study_ends_with_it(
    worker: GpuWorker, pack: FakePack, order: Make, ended: threading.Event, changes: dict[str, dict[str, str]]
) -> None:
    train_one(worker, pack, replace(order(1), **changes))
    assert worker.release("study") is None
    assert has_ended(worker, ended)


@pytest.mark.parametrize("status", [OutcomeStatus.FAILED, OutcomeStatus.OUT_OF_MEMORY])
def test_a_worker_in_which_a_trial_failed_ends_with_its_study(
    worker: GpuWorker, order: Make, ended: threading.Event, status: OutcomeStatus
) -> None:
    worker.submit(order(1))
    worker._record(TrialOutcome(attempt_id=1, status=status, reason="it broke"))
    assert worker.release("study") is None
    assert has_ended(worker, ended)


def test_an_idle_worker_whose_coordinator_died_waits_in_the_pool_again(
    monkeypatch: pytest.MonkeyPatch, worker: GpuWorker, pack: FakePack, order: Make
) -> None:
    """Not before its last event is acknowledged, which a successor has to hear."""
    monkeypatch.setattr(gpu_worker, "FORSAKEN_SECONDS", 0.05)
    train_one(worker, pack, order(1))
    with worker._wake:
        worker._wake.notify_all()  # the watch looks at once
    time.sleep(0.2)
    assert worker.info().study_id == "study"
    assert worker.events("study", 1) == ()
    time.sleep(0.1)
    with worker._wake:
        worker._wake.notify_all()
    wait_until(lambda: worker.info().study_id is None)


def test_a_base_that_no_study_uses_ends_its_worker_after_a_while(
    worker: GpuWorker, pack: FakePack, order: Make, ended: threading.Event
) -> None:
    worker._assignment._keep_base_s = 0.0
    train_one(worker, pack, order(1))
    assert not worker._stopping
    worker.release("study")
    assert has_ended(worker, ended)
    assert worker.assign("late") is None


def test_a_worker_that_another_study_had_trains_as_a_new_one_does(
    ended: threading.Event, tmp_path: Path, tiny_base_dir: Path
) -> None:
    """With the real pack: every number of a trial equals that on a new worker, and the base is kept.

    The study before had other data lengths, a larger adapter, and a trial that was pruned on its way.
    """

    def numbers(worker: GpuWorker, folder: Path) -> list[object]:
        order = trial_order(tmp_path, tiny_base_dir, attempt_id=5, study_id="next", every_examples=8)
        order = replace(order, artifact_dir=str(folder))
        assert worker.submit(order) is True
        said = follow(worker, TrialOutcome, "next")
        return [
            *((report.rung, report.metrics, report.train_loss) for report in of_type(said, Report)),
            *((o.status, o.value, o.metrics, o.steps) for o in of_type(said, TrialOutcome)),
        ]

    used = GpuWorker(worker_spec("used"))
    large = Recipe(learning_rate=1e-1, batch_size=4, lora_r=16, epochs=50, max_length=16)
    for attempt_id, recipe in ((1, large), (2, None)):
        used.submit(trial_order(tmp_path, tiny_base_dir, attempt_id=attempt_id, recipe=recipe))
        if recipe is large:
            used.verdict(Verdict(attempt_id=1, decision=Decision.PRUNE, reason="poor"))
        wait_until(lambda: used.info().running_attempts == ())
    assert used._pack._loaded.base is not None
    base = used._pack._loaded.base.host
    assert used.release("study") is not None
    loaded = used._pack._loaded
    assert (loaded._train, loaded._evaluation, loaded._measures, loaded._labels) == ({}, {}, {}, {})
    assert used.assign("next") is not None
    new = GpuWorker(worker_spec("new", study_id="next"))
    assert numbers(used, tmp_path / "again") == numbers(new, tmp_path / "new")
    assert used._pack._loaded.base.host is base
    for worker in (used, new):
        worker.shutdown()
        assert has_ended(worker, ended)


def test_a_waiting_worker_that_no_coordinator_attends_to_ends(
    ended: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_pack(worker: GpuWorker) -> FakePack:
        worker._device, worker._device_id, worker._threads = "cpu", None, None
        return FakePack(worker._record)

    monkeypatch.setattr(GpuWorker, "_make_pack", make_pack)
    lonely = GpuWorker(worker_spec("w1", study_id=None, orphan_timeout_s=0.5))
    before = lonely._last_poll
    assert lonely.attend().study_id is None
    assert lonely._last_poll > before
    assert has_ended(lonely, ended)
