"""Points at even distances on a scale, the same on every machine.

Linear points are sums in exact fractions; points on a log scale are taken with `decimal`, whose logarithm
is rounded correctly everywhere, where that of a C library may differ in its last digit. So five points
from 1e-5 to 1e-1 are 1e-5, 1e-4, 1e-3, 1e-2 and 1e-1, as written.
"""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

_CONTEXT = Context(prec=30)
"""Far more digits than the 17 of a float, so that what is left of the error rounds away."""


def exact(number: float) -> Fraction:
    """The shortest decimal that reads back as this float: what a person wrote."""
    return Fraction(Decimal(repr(number)))


@lru_cache(maxsize=64)
def even_floats(low: float, high: float, log: bool, count: int) -> tuple[float, ...]:
    """`count` (at least 2) points from `low` to `high`, both included, ascending."""
    if log:
        start, end = (Decimal(repr(bound)).ln(_CONTEXT) for bound in (low, high))
        step = _CONTEXT.divide(_CONTEXT.subtract(end, start), Decimal(count - 1))
        inner = [
            float(_CONTEXT.add(start, _CONTEXT.multiply(step, Decimal(i))).exp(_CONTEXT))
            for i in range(1, count - 1)
        ]
    else:
        width = exact(high) - exact(low)
        inner = [float(exact(low) + width * i / (count - 1)) for i in range(1, count - 1)]
    return (low, *inner, high)


@lru_cache(maxsize=64)
def even_ints(low: int, high: int, log: bool, count: int) -> tuple[int, ...]:
    """The same, each rounded to the nearest whole number, and each of these once."""
    return tuple(dict.fromkeys(round(point) for point in even_floats(low, high, log, count)))
