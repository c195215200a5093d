"""The Pareto front against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.analysis.pareto import front

POINTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 4).map(float), min_size=width, max_size=width), max_size=25
    )
)


def dominated(point: list[float], by: list[float]) -> bool:
    return by != point and all(b <= p for p, b in zip(point, by, strict=True))


@given(POINTS)
def test_it_holds_exactly_what_nothing_dominates(points: list[list[float]]) -> None:
    expected = {i for i, point in enumerate(points) if not any(dominated(point, other) for other in points)}
    found = front(points)
    assert set(found) == expected
    assert len(found) == len(expected)


@given(POINTS)
def test_it_is_sorted_by_the_first_objective(points: list[list[float]]) -> None:
    firsts = [points[index][0] for index in front(points)]
    assert firsts == sorted(firsts)


def test_with_one_objective_it_is_the_best_and_its_equals() -> None:
    assert front([[2.0], [1.0], [1.0], [3.0]]) == [1, 2]
