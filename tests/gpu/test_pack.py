"""A pack on a device: as many trials as pay, from order to outcome."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from tests.support.workers.gpu_trials import DEVICE, Bases, train_orders
from tests.support.workers.trials import of_type, trial_order
from workers.contract import OutcomeStatus, PackCapacity, TrialStarted


def test_a_measured_pack_ends_as_trials_alone_do(bases: Bases, tmp_path: Path) -> None:
    """nf4 in the device's own compute dtype, so the objectives are equal as far as that rounds."""
    orders = [
        trial_order(
            tmp_path,
            bases.folder,
            attempt_id=number,
            recipe=Recipe(lora_r=rank, batch_size=1, learning_rate=3e-3, epochs=2, lora_dropout=0.05),
        )
        for number, rank in ((1, 4), (2, 8), (3, 16), (4, 4))
    ]
    packed, events = train_orders(orders, slots=None)
    alone, _ = train_orders(orders, slots=1)
    assert {o.status for o in (*packed.values(), *alone.values())} == {OutcomeStatus.COMPLETED}
    for number, outcome in packed.items():
        assert outcome.value == pytest.approx(alone[number].value, rel=0.02)
        assert outcome.peak_memory_bytes
        assert outcome.predicted_memory_bytes
    # Batches of one short row leave a GPU idle, so a further trial pays.
    assert of_type(events, PackCapacity)[0].slots > 1
    assert {started.device for started in of_type(events, TrialStarted)} == {str(DEVICE)}
