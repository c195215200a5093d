"""Hypothesis strategies for valid search spaces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from search_spaces.space import SearchSpace

# Field -> an interval that lies inside the recipe's bounds.
_FLOATS = {
    "learning_rate": (1e-7, 1.0),
    "weight_decay": (0.0, 10.0),
    "lora_dropout": (0.0, 0.99),
    "warmup_ratio": (0.0, 1.0),
    "lora_alpha_ratio": (1e-3, 64.0),
}
_INTS = {"batch_size": (1, 4096), "lora_r": (1, 512)}
_CHOICES: dict[str, list[Any]] = {
    "lr_scheduler": ["linear", "cosine", "constant"],
    "use_rslora": [True, False],
    "target_modules": ["all-linear", "attention", ["q_proj", "v_proj"], ["q_proj"]],
}


@st.composite
def _float(draw: st.DrawFn, low: float, high: float, finite: bool) -> dict[str, Any]:
    if finite:
        step = draw(st.integers(1, 50)) / 1000
        count = draw(st.integers(1, 5))
        start = round(low, 3) + draw(st.integers(1, 20)) / 1000
        # A range that may or may not end on a step.
        end = round(start + count * step + draw(st.sampled_from([0.0, 0.0004])), 4)
        return {"min": round(start, 3), "max": min(end, high), "step": step}
    first, second = sorted(
        draw(st.lists(st.floats(low, high, allow_subnormal=False), min_size=2, max_size=2, unique=True))
    )
    scale = draw(st.sampled_from(["linear", "log"])) if first > 0 else "linear"
    return {"min": first, "max": second, "scale": scale}


@st.composite
def _int(draw: st.DrawFn, low: int, high: int) -> dict[str, Any]:
    first = draw(st.integers(low, high - 1))
    second = draw(st.integers(first + 1, min(high, first + 12)))
    step = draw(st.integers(1, second - first))
    scale = draw(st.sampled_from(["linear", "log"])) if step == 1 else "linear"
    return {"type": "int", "min": first, "max": second, "step": step, "scale": scale}


@st.composite
def raw_spaces(draw: st.DrawFn, finite: bool = False) -> dict[str, Any]:
    """The mapping a user could write, in any order; `finite`: with a grid of at most 10,000 points."""
    fields = [*_FLOATS, *_INTS, *_CHOICES]
    names = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3 if finite else 6, unique=True))
    space: dict[str, Any] = {}
    for name in names:
        if name in _FLOATS:
            low, high = _FLOATS[name]
            space[name] = draw(
                st.one_of(
                    _float(low, high, finite),
                    st.lists(st.floats(low, high), min_size=1, max_size=4, unique=True).map(_choice),
                )
            )
        elif name in _INTS:
            least, most = _INTS[name]
            space[name] = draw(
                st.one_of(
                    _int(least, most),
                    st.lists(st.integers(least, most), min_size=1, max_size=4, unique=True).map(_choice),
                )
            )
        else:
            values = draw(st.permutations(_CHOICES[name]))
            space[name] = _choice(values[: draw(st.integers(1, len(values)))])
    return space


def _choice(values: list[Any]) -> dict[str, Any]:
    return {"choices": values}


def spaces(finite: bool = False) -> st.SearchStrategy[SearchSpace]:
    """Valid search spaces."""
    return raw_spaces(finite).map(SearchSpace.model_validate)
