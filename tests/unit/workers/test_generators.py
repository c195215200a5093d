"""A trial's random draws go on from its own last committed one, whatever happens around it."""

from __future__ import annotations

import pytest
import torch

from workers.generators import TrialGenerators, seeded

CPU = torch.device("cpu")


def draw(generators: TrialGenerators) -> list[float]:
    with generators.lent():
        return torch.rand(4).tolist()


def fail_half_way(generators: TrialGenerators) -> None:
    with generators.lent():
        torch.rand(2)
        raise RuntimeError("half-way")


def test_draws_are_those_of_the_seed_and_go_on_after_a_commit() -> None:
    with seeded(5, CPU):
        expected = [torch.rand(4).tolist() for _ in range(2)]
    generators = TrialGenerators(5, CPU)
    first = draw(generators)
    generators.commit()
    torch.rand(3)
    assert [first, draw(generators)] == expected


def test_draws_without_a_commit_are_drawn_again() -> None:
    generators = TrialGenerators(5, CPU)
    assert draw(generators) == draw(generators)


def test_a_lending_that_fails_leaves_both_the_trial_and_the_process_where_they_were() -> None:
    generators = TrialGenerators(5, CPU)
    expected = draw(TrialGenerators(5, CPU))
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way(generators)
    generators.commit()
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(generators) == expected
