"""Random draws under a seed of one's own, which disturb nobody else's."""

from __future__ import annotations

import pytest
import torch

from workers.device.generators import seeded

CPU = torch.device("cpu")


def draw(seed: int) -> list[float]:
    with seeded(seed, CPU):
        return torch.rand(4).tolist()


def fail_half_way() -> None:
    with seeded(5, CPU):
        torch.rand(2)
        raise RuntimeError("half-way")


def test_draws_are_those_of_the_seed_whatever_was_drawn_before() -> None:
    expected = torch.rand(4, generator=torch.Generator().manual_seed(5)).tolist()
    found = [draw(5)]
    torch.rand(3)
    draw(6)
    found.append(draw(5))
    assert found == [expected, expected]


def test_other_seeds_give_other_draws() -> None:
    assert len({tuple(draw(seed)) for seed in (0, 1, 2**32 - 1)}) == 3


def test_outside_nothing_was_drawn() -> None:
    before = torch.get_rng_state()
    draw(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failure_inside_leaves_the_process_where_it_was() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert torch.equal(torch.get_rng_state(), before)


def test_one_inside_another_goes_on_with_the_outer_draws() -> None:
    with seeded(5, CPU):
        expected = torch.rand(4).tolist()
    with seeded(5, CPU):
        found = torch.rand(2).tolist()
        draw(6)
        found += torch.rand(2).tolist()
    assert found == expected
