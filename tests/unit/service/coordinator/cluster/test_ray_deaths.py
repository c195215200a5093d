"""A worker's death is told in what happened, without Ray's guesses."""

from __future__ import annotations

from service.coordinator.cluster.ray_deaths import read_death
from service.states import LossCause

KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file."
)
GUESSES = (
    " Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2)"
    " ray stop --force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another error."
)


def test_rays_guesses_at_a_death_are_left_out() -> None:
    message = f"The actor died unexpectedly.\n\tclass_name: GpuWorker\n{KILLED}{GUESSES}"
    told = read_death(message, died=True, preempted=False, alive=list)
    assert told == (KILLED, LossCause.WORKER_DIED)
