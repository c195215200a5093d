"""The smallest valid definition, and Hypothesis strategies for valid search spaces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from search_spaces.space.search_space import SearchSpace
from search_spaces.values.numbers import significant

DOCUMENT: dict[str, Any] = {
    "name": "tone",
    "model": {"id": "org/base"},
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "search": {
        "algorithm": "tpe",
        "trials": 12,
        "seed": 7,
        "space": {
            "learning_rate": {"min": 1.0e-5, "max": 1.0e-3, "scale": "log"},
            "lora_r": {"choices": [4, 8, 16]},
        },
    },
}

# Field -> an interval that lies inside the recipe's bounds.
_FLOATS = {
    "learning_rate": (1e-7, 1.0),
    "weight_decay": (0.0, 10.0),
    "lora_dropout": (0.0, 0.99),
    "warmup_ratio": (0.0, 1.0),
    "lora_alpha_ratio": (1e-3, 64.0),
    "neftune_alpha": (0.0, 50.0),
}
_INTS = {"batch_size": (1, 4096), "lora_r": (1, 512)}
_CHOICES: dict[str, list[Any]] = {
    "lr_scheduler": ["linear", "cosine", "constant"],
    "use_rslora": [True, False],
    "loss": ["cross_entropy", "focal"],
    "target_modules": ["all-linear", "attention", ["q_proj", "v_proj"], ["q_proj"]],
}
_OF_SGD: dict[str, Any] = {"sgd_momentum": [0.0, 0.9], "sgd_nesterov": [True, False]}


@st.composite
def _float(draw: st.DrawFn, low: float, high: float, finite: bool) -> dict[str, Any]:
    if finite:
        step = draw(st.integers(1, 50)) / 1000
        count = draw(st.integers(1, 5))
        start = round(low, 3) + draw(st.integers(1, 20)) / 1000
        # A range that may or may not end on a step.
        end = round(start + count * step + draw(st.sampled_from([0.0, 0.0004])), 4)
        return {"min": round(start, 3), "max": min(end, high), "step": step}
    ends = st.floats(low, high, allow_subnormal=False)
    first, second = sorted(draw(st.lists(ends, min_size=2, max_size=2, unique_by=significant)))
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
                    st.lists(st.floats(low, high), min_size=1, max_size=4, unique_by=significant).map(
                        _choice
                    ),
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


@st.composite
def _pointed(draw: st.DrawFn, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with `points` in place of the step of some ranges."""
    space = {}
    for name, parameter in raw.items():
        if "min" in parameter and draw(st.booleans()):
            whole = parameter.get("type") == "int"
            most = min(5, parameter["max"] - parameter["min"] + 1) if whole else 5
            scale = "log" if parameter["min"] > 0 and draw(st.booleans()) else "linear"
            parameter = {key: value for key, value in parameter.items() if key != "step"}
            parameter |= {"scale": scale, "points": draw(st.integers(2, most))}
        space[name] = parameter
    return space


@st.composite
def raw_conditional_spaces(draw: st.DrawFn, finite: bool = False) -> dict[str, Any]:
    """`raw_spaces` with conditions that can all hold at once, chains of them too, and with `points`.

    Where the optimizer is searched, sgd's own fields may be, and are conditional without saying so.
    """
    raw = draw(_pointed(draw(raw_spaces(finite))))
    if draw(st.booleans()):
        others = draw(st.lists(st.sampled_from(["adamw", "rmsprop"]), max_size=2, unique=True))
        raw["optimizer"] = _choice(draw(st.permutations(["sgd", *others])))
        for name in draw(st.lists(st.sampled_from(sorted(_OF_SGD)), max_size=2, unique=True)):
            raw[name] = _choice(_OF_SGD[name])
    names = draw(st.permutations(sorted(raw)))
    # Whoever comes later may depend on those before; the optimizer is first, for its fields depend on it.
    names = sorted(names, key=lambda name: name != "optimizer")
    witness = {name: _values(raw[name])[0] for name in names if _values(raw[name])}
    witness["optimizer"] = "sgd"
    for place, name in enumerate(names):
        parents = [parent for parent in names[:place] if _values(raw[parent])]
        when = {}
        for parent in draw(st.lists(st.sampled_from(parents), max_size=2, unique=True)) if parents else []:
            more = draw(st.lists(st.sampled_from(_values(raw[parent])), max_size=2))
            if parent == "optimizer" and name in _OF_SGD:
                more = []
            values = [value for value in more if value != witness[parent]]
            when[parent] = draw(st.permutations([witness[parent], *values[:1]]))
        if when:
            raw[name] = raw[name] | {"when": when}
    return {name: raw[name] for name in draw(st.permutations(names))}


def _values(parameter: dict[str, Any]) -> list[Any]:
    """What a condition may name of a parameter."""
    if "choices" in parameter:
        return list(parameter["choices"])
    if parameter.get("type") == "int":
        return list(range(parameter["min"], parameter["max"] + 1, parameter.get("step", 1)))
    return []


def spaces(finite: bool = False) -> st.SearchStrategy[SearchSpace]:
    """Valid search spaces."""
    return raw_spaces(finite).map(SearchSpace.model_validate)


def conditional_spaces(finite: bool = False) -> st.SearchStrategy[SearchSpace]:
    """Valid search spaces with conditions."""
    return raw_conditional_spaces(finite).map(SearchSpace.model_validate)
