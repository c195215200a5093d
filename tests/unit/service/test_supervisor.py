"""What is wrong from the start is said before anything is started, and ending has a limit."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service import supervisor
from service.coordinator import ray_authentication
from service.errors import Unavailable
from service.settings import Settings
from service.supervisor import free_port


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Hanging:
    """A child that ends only when it is killed."""

    clock: Clock
    waited: list[float] = field(default_factory=list)

    def terminate(self) -> None:
        """It does not listen."""

    def join(self, timeout_s: float) -> None:
        self.waited.append(timeout_s)
        self.clock.now += timeout_s


def test_a_url_that_nothing_here_reaches_is_said_before_anything_is_started(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", artifacts_url="nothing://bucket/x")
    with pytest.raises(Unavailable, match="nothing://bucket/x cannot be used for artifacts"):
        supervisor.Supervisor(settings).__enter__()
    with pytest.raises(Unavailable, match="nothing://bucket/x cannot be used for artifacts"):
        supervisor.run_api(settings)
    assert not settings.home.exists()


def test_a_cluster_that_does_not_answer_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Settings) -> None:
        raise Unavailable("no head there")

    monkeypatch.setattr(ray_authentication, "require", refuse)
    settings = Settings(home=tmp_path / "home", port=free_port(), ray_address="head-node:6379")
    with pytest.raises(Unavailable, match="no head there"):
        supervisor.Supervisor(settings).__enter__()
    assert not (settings.home / "logs").exists()


def test_the_api_says_in_a_sentence_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(home=tmp_path / "home", port=taken.getsockname()[1])
        with pytest.raises(Unavailable, match="Choose another port with --port"):
            supervisor.run_api(settings)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8787"),
        ("0.0.0.0", "http://127.0.0.1:8787"),
        ("::", "http://[::1]:8787"),
        ("::1", "http://[::1]:8787"),
        ("build-box", "http://build-box:8787"),
    ],
)
def test_the_url_is_one_that_reaches_the_server_from_here(tmp_path: Path, host: str, url: str) -> None:
    assert supervisor.Supervisor(Settings(home=tmp_path, host=host)).url == url


def test_what_does_not_end_is_given_the_time_that_is_promised_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    everything: Any = supervisor.Supervisor(Settings(home=tmp_path, drain_seconds=30))
    everything._coordinator, everything._api, everything._ray = (Hanging(clock) for _ in range(3))
    everything.stop()
    assert everything._api.waited == [0.0]  # it was told to end when the coordinator was
    assert clock.now == 100.0 + 30 + 30
