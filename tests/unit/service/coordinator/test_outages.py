"""How a process starts while a database is away."""

from __future__ import annotations

import errno
import logging
import time

import pytest

from service.coordinator import outages


def test_a_start_waits_for_the_databases_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    failures = [OSError(errno.ENOSPC, "No space left on device")] * 8

    def open_it() -> str:
        if failures:
            raise failures.pop()
        return "opened"

    with caplog.at_level(logging.WARNING):
        assert outages.until_it_answers(open_it) == "opened"
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    (said,) = caplog.messages
    assert "No space left on device" in said


def test_a_start_does_not_wait_for_what_is_no_outage() -> None:
    def open_it() -> None:
        raise ValueError("a broken setting")

    with pytest.raises(ValueError, match="a broken setting"):
        outages.until_it_answers(open_it)


def test_ctrl_c_ends_a_start_that_meets_a_full_disk() -> None:
    def open_it() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outages.until_it_answers(open_it)
