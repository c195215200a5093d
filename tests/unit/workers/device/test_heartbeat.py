"""When the training thread counts as hung: by a clock that the test moves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.support.workers.trials import trial_order
from workers.device.heartbeat import Heartbeat, _bytes_moved
from workers.pack.loaded import LoadedStudies


class Bench:
    def __init__(self, *, training_s: float = 300.0, loading_s: float = 3600.0) -> None:
        self.now = 1000.0
        self.moved = 0
        self.heartbeat = Heartbeat(
            training_s=training_s,
            loading_s=loading_s,
            clock=lambda: self.now,
            bytes_moved=lambda: self.moved,
        )

    def ask_for(self, seconds: float, *, moving: int = 0) -> str | None:
        """What is said in the end, asked every ten seconds."""
        said = None
        for _ in range(round(seconds / 10)):
            self.now += 10.0
            self.moved += moving
            said = self.heartbeat.stalled()
        return said

    def passes(self, kind: str, *seconds: float) -> None:
        for each in seconds:
            with self.heartbeat.passing(kind):
                self.now += each


def test_a_pass_that_does_not_end_is_hung_after_the_limit_and_not_before() -> None:
    bench = Bench()
    bench.passes("training", 2.0, 1.0)
    with bench.heartbeat.passing("training"):
        assert bench.ask_for(300) is None
        assert bench.ask_for(10) == "no training pass ended for 310 s; the longest before took 2 s"


def test_long_passes_make_a_longer_limit() -> None:
    bench = Bench()
    bench.passes("training", 100.0)
    with bench.heartbeat.passing("training"):
        assert bench.ask_for(2000) is None
        assert bench.ask_for(10) is not None


def test_each_kind_of_pass_has_its_own_longest_time() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    bench.passes("evaluation", 100.0)
    with bench.heartbeat.passing("training"):
        assert bench.ask_for(310) is not None


def test_the_first_pass_may_take_as_long_as_loading() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    with bench.heartbeat.passing("evaluation"):
        assert bench.ask_for(3600) is None
        assert bench.ask_for(10) == "no evaluation pass ended for 3610 s"


def test_many_passes_may_take_any_time_together() -> None:
    bench = Bench()
    for _ in range(1000):
        with bench.heartbeat.passing("evaluation"):
            assert bench.ask_for(20) is None


def test_outside_a_pass_the_limit_is_that_of_loading() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    assert bench.ask_for(3600) is None
    assert bench.ask_for(10) == "the training thread made no progress for 3610 s outside a pass"


def test_an_event_is_a_sign_of_life() -> None:
    bench = Bench()
    bench.heartbeat.beat()
    for _ in range(10):
        assert bench.ask_for(3000) is None
        bench.heartbeat.beat()


def test_a_download_may_take_any_time_and_a_log_line_is_none() -> None:
    bench = Bench()
    bench.heartbeat.beat()
    assert bench.ask_for(36_000, moving=1_000_000) is None
    assert bench.ask_for(3610, moving=1_000) is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts what a process writes")
def test_what_is_written_is_counted_and_what_is_read_of_proc_is_not(tmp_path: Path) -> None:
    """Ray's threads read the latter all the time, also while the training hangs."""
    before = _bytes_moved()
    (tmp_path / "rows").write_bytes(bytes(1_000_000))
    assert _bytes_moved() - before >= 1_000_000
    before = _bytes_moved()
    for _ in range(100):
        Path("/proc/self/smaps").read_bytes()
    assert _bytes_moved() == before


def test_moving_bytes_does_not_excuse_a_pass() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    with bench.heartbeat.passing("training"):
        assert bench.ask_for(310, moving=1_000_000) is not None


def test_who_waits_for_work_is_never_hung() -> None:
    bench = Bench()
    assert bench.ask_for(10_000) is None
    bench.heartbeat.beat()
    with bench.heartbeat.waiting():
        assert bench.ask_for(10_000) is None
    assert bench.ask_for(3600) is None
    assert bench.ask_for(10) is not None


def test_the_time_in_which_the_whole_process_was_stopped_does_not_count() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    with bench.heartbeat.passing("training"):
        assert bench.ask_for(100) is None
        bench.now += 5_000.0
        assert bench.heartbeat.stalled() is None
        assert bench.ask_for(300) is None
        assert bench.ask_for(10) is not None


def test_a_pass_that_breaks_has_ended() -> None:
    bench = Bench()
    bench.passes("training", 1.0)
    try:
        with bench.heartbeat.passing("training"):
            raise RuntimeError
    except RuntimeError:
        assert bench.ask_for(3600) is None


def test_each_row_that_is_tokenised_is_a_sign_of_life(tmp_path: Path, tiny_base_dir: Path) -> None:
    """Millions of rows take longer than anything else may."""

    class Counting(Heartbeat):
        beats = 0

        def beat(self) -> None:
            self.beats += 1

    heartbeat = Counting(training_s=1.0, loading_s=1.0)
    loaded = LoadedStudies(torch.device("cpu"), heartbeat).load(trial_order(tmp_path, tiny_base_dir), ())
    rows = len(loaded.train.examples) + len(loaded.evaluation.examples)
    assert heartbeat.beats >= rows > 0
