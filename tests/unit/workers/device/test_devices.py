"""Which GPU a worker says it has."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import torch

from workers.device.devices import device_id

UUID = "2f1c9b52-5d1c-4b0a-9d2e-0a1b2c3d4e5f"


def driver_says(monkeypatch: pytest.MonkeyPatch, uuids: list[str | None]) -> None:
    def properties(index: int) -> SimpleNamespace:
        uuid = uuids[index]
        return SimpleNamespace() if uuid is None else SimpleNamespace(uuid=uuid)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")


def test_a_cpu_is_no_device() -> None:
    assert device_id(torch.device("cpu")) is None


@pytest.mark.parametrize("said", [UUID, f"GPU-{UUID}"])
def test_a_gpu_is_named_by_its_machine_and_its_uuid(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    driver_says(monkeypatch, [None, said])
    assert device_id(torch.device("cuda", 1)) == f"node-7/GPU-{UUID}"


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [("3", 0, "node-7/3"), ("4, 6", 1, "node-7/6"), ("", 1, "node-7/1"), ("4", 1, "node-7/1")],
)
def test_without_a_uuid_it_is_the_machine_s_own_index(
    monkeypatch: pytest.MonkeyPatch, visible: str, index: int, expected: str
) -> None:
    """Ray shows a worker its own GPUs only, so that the first of each is `cuda:0`."""
    driver_says(monkeypatch, [None, None])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_id(torch.device("cuda", index)) == expected
