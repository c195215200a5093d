"""The name of a real GPU is the one its driver has for it."""

from __future__ import annotations

import socket
import subprocess

import torch

from workers.device.devices import device_id


def test_a_gpu_is_named_as_nvidia_smi_names_it() -> None:
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert device_id(torch.device("cuda")) in {
        f"{socket.gethostname()}/{uuid.strip()}" for uuid in listed.stdout.splitlines()
    }
