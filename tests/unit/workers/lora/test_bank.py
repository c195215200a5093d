"""Banks of slots: who is given which row, how much memory is held for nobody, and where the matrices lie."""

from __future__ import annotations

import pytest
import torch

from workers.lora import bank as bank_module
from workers.lora.bank import MOST_SLOTS, Bank, Banks, Slot, Span

CPU = torch.device("cpu")
P = 100


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is left on the device: plenty."""
    left = {"bytes": 2**40}
    monkeypatch.setattr(bank_module, "available_bytes", lambda _device: left["bytes"])
    return left


def sizes(slots: list[Slot]) -> list[int]:
    """Slots of the banks, in the order in which they were made."""
    banks = {slot.bank.number: slot.bank for slot in slots}
    return [len(banks[number].weights) for number in sorted(banks)]


def test_a_new_bank_has_as_many_slots_as_there_are_adapters_of_its_shape(memory: dict[str, int]) -> None:
    banks = Banks(CPU, most=8)
    taken = [banks.take("shape", P) for _ in range(30)]
    assert sizes(taken) == [1, 1, 2, 4, 8, 8, 8]
    assert [slot.place for slot in taken] == sorted(slot.place for slot in taken)
    assert len({slot.place for slot in taken}) == 30
    other = banks.take("other", P)
    assert other.bank not in {slot.bank for slot in taken}


def test_the_first_slot_that_is_free_is_taken_and_an_empty_bank_goes(memory: dict[str, int]) -> None:
    banks = Banks(CPU, most=4)
    taken = [banks.take("shape", P) for _ in range(8)]
    assert sizes(taken) == [1, 1, 2, 4]
    for k in (6, 4, 1):
        banks.give_back(taken[k])
    assert [banks.take("shape", P).place for _ in range(2)] == [taken[4].place, taken[6].place]
    further = banks.take("shape", P)
    assert further.bank is not taken[1].bank
    assert further.bank.number > taken[7].bank.number


def test_memory_for_adapters_that_are_not_there_is_bounded(memory: dict[str, int]) -> None:
    """A slot is 8 bytes a number; slots beside the one asked for take a 32nd of what is left at most."""
    banks = Banks(CPU, most=8)
    taken = [banks.take("shape", P) for _ in range(8)]
    memory["bytes"] = 3 * 32 * 8 * P
    taken.append(banks.take("shape", P))
    memory["bytes"] = 0
    taken += [banks.take("shape", P) for _ in range(4)]
    assert sizes(taken) == [1, 1, 2, 4, 4, 1]


def test_on_a_cpu_every_adapter_has_memory_of_its_own() -> None:
    banks = Banks(CPU)
    assert sizes([banks.take("shape", P) for _ in range(5)]) == [1] * 5


def test_on_another_device_banks_have_several_slots(memory: dict[str, int]) -> None:
    banks = Banks(torch.device("meta"))
    assert max(sizes([banks.take("shape", P) for _ in range(40)])) == MOST_SLOTS


def test_rows_are_aligned_alike_and_matrices_are_views() -> None:
    spans = [Span(0, 2, 5, 7), Span(24, 3, 4, 6)]
    assert [span.stop for span in spans] == [24, 54]
    bank = Bank.of(spans[-1].stop, 3, CPU)
    assert bank.weights.shape == bank.gradients.shape == (3, 64)
    assert len({row.data_ptr() % 64 for rows in (bank.weights, bank.gradients) for row in rows}) == 1
    bank.weights.copy_(torch.arange(3 * 64).view(3, 64))
    seen = torch.cat([of(bank.weights)[1].flatten() for span in spans for of in (span.a, span.b)])
    assert torch.equal(seen, bank.weights[1, :54])
    assert [tuple(of(bank.weights).shape) for of in (spans[1].a, spans[1].b)] == [(3, 3, 4), (3, 3, 6)]
    spans[1].b(bank.weights[1:])[0].zero_()
    assert bank.weights[1, 36:54].unique().tolist() == [0.0]
    assert bank.weights[[0, 2], 36:54].all()


@pytest.mark.parametrize(
    ("span", "float32", "bfloat16"),
    [
        (Span(0, 8, 16, 32), True, True),
        (Span(0, 4, 16, 32), True, False),
        (Span(4, 8, 16, 32), True, False),
        (Span(0, 8, 16, 30), False, False),
        (Span(0, 1, 16, 32), False, False),
    ],
)
def test_torchs_grouped_product_wants_steps_of_16_bytes(span: Span, float32: bool, bfloat16: bool) -> None:
    assert (span.fits_grouped(torch.float32), span.fits_grouped(torch.bfloat16)) == (float32, bfloat16)
