"""A Ray that does not answer, and a coordinator that stood still itself."""

from __future__ import annotations

import threading

from service.coordinator.cluster.silence import RAY_IS_SILENT, Attention, SilenceLimits, Watched
from service.settings import Settings


class Ray:
    """Answers one call at once, and the other when it is let go."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def nodes(self) -> str:
        return "nodes"

    def start(self, study_id: str, *, wait: float) -> str:
        self.release.wait(wait)
        return study_id


def test_a_call_that_ray_does_not_answer_ends_the_process() -> None:
    ray, ended = Ray(), list[str]()

    def end(call: str) -> None:
        ended.append(call)
        ray.release.set()

    watched = Watched(ray, 0.2, end)
    assert watched.nodes() == "nodes"
    assert watched.start("s", wait=60.0) == "s"
    assert ended == ["start"]


def test_the_exit_status_is_the_one_for_a_temporary_failure() -> None:
    assert RAY_IS_SILENT == 75


def test_a_round_counts_for_a_few_seconds_at_most_however_long_it_took() -> None:
    attention = Attention(100.0)
    assert attention.look(101.0) == 1.0
    assert attention.look(10_000.0) == 6.0
    assert attention.look(9_000.0) == 6.0
    assert attention.look(9_001.0) == 7.0


def test_the_limits_of_the_settings_are_those_that_are_used_without() -> None:
    assert SilenceLimits.of(Settings()) == SilenceLimits()
