"""From what pydantic says to faults a person can act on.

A pydantic error is one sentence about one union member; a `Fault` names the place, the value, what is
allowed and the nearest known name. Validators of this package that find several things wrong at once
raise `problems(*faults)`, which `translate` unfolds again.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from search_spaces.errors import Fault, join_path

MAX_FAULTS = 100
"""More than a person reads; bounds the answer to a hostile document."""

SET_BY_SERVICE = "set by the service"
"""Marks a model's field (`Annotated[..., SET_BY_SERVICE]`) that nobody is to be pointed to."""

_LONGEST_TEXT = 200
_LONGEST_LIST = 20
_DEEPEST = 4
_PROBLEMS = "problems"
_NUMBER = re.compile(r"[-+]?\d+")

Model = TypeVar("Model", bound=BaseModel)


def shown(value: Any, depth: int = 0) -> Any:
    """`value` as a fault shows it: always serialisable as JSON, never long."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Python refuses to print integers of more than 4,300 digits.
        return value if abs(value) < 2**63 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        text = value[:_LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")
        return text if len(value) <= _LONGEST_TEXT else text + "…"
    if isinstance(value, BaseModel):
        return shown(value.model_dump(mode="json"), depth)
    if depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:_LONGEST_LIST]
        return {str(shown(key)): shown(item, depth + 1) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [shown(item, depth + 1) for item in value[:_LONGEST_LIST]]
    return f"a value of type {type(value).__name__}"


def nearest_name(word: object, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """The known name that `word` was meant to be, where that is plain: a typing error, or a part of the name.

    `synonyms` maps names other tools use to ours (`lr` resembles no `learning_rate` by its letters).
    """
    if not isinstance(word, str) or not word.strip() or len(word) > _LONGEST_TEXT:
        return None
    candidate = word.strip().lower()
    if synonyms is not None and candidate in synonyms:
        return synonyms[candidate]
    by_lower = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(candidate, by_lower, n=5, cutoff=0.6)
    misspelt = [name for name in similar if _is_misspelt(candidate, name)]
    if misspelt:
        return by_lower[min(misspelt, key=lambda name: _typing_errors(candidate, name))]
    beginning = _only(by_lower, lambda name: _begins(candidate, name) or _begins(name, candidate))
    return beginning or _only(by_lower, lambda name: _is_part(candidate, name) or _is_part(name, candidate))


def _only(by_lower: Mapping[str, str], fits: Callable[[str], bool]) -> str | None:
    fitting = [name for name in by_lower if fits(name)]
    return by_lower[fitting[0]] if len(fitting) == 1 else None


def _begins(short: str, long: str) -> bool:
    """Whether `short` is the beginning of `long`, and not by chance: `quant` of `quantization`."""
    long_enough = len(short) > 2 and 3 * len(short) >= len(long)
    return long_enough and long.startswith(short) and not _NUMBER.search(long)


def _is_part(short: str, long: str) -> bool:
    """Whether `short` is one or more whole words of `long`: `Berlin` of `Europe/Berlin`."""
    words, of = re.findall(r"[a-z0-9]+", short), re.findall(r"[a-z0-9]+", long)
    inside = any(of[start : start + len(words)] == words for start in range(len(of) - len(words) + 1))
    return bool(words) and inside and _NUMBER.findall(short) == _NUMBER.findall(long)


def _is_misspelt(word: str, name: str) -> bool:
    """One typing error after the first letter, or one for every four letters of the shorter one.

    Another number is another thing: `int8` is not a way to write `int4`.
    """
    if _NUMBER.findall(word) != _NUMBER.findall(name):
        return False
    errors, length = _typing_errors(word, name), min(len(word), len(name))
    return errors <= length // 4 or (errors == 1 and length > 2 and word[0] == name[0])


def _typing_errors(word: str, name: str) -> int:
    """Letters added, left out, replaced, or swapped with the next one (optimal string alignment)."""
    before_last: list[int] = []
    last = list(range(len(name) + 1))
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, other in enumerate(name, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == name[j - 2] and word[i - 2] == other:
                row[j] = min(row[j], before_last[j - 2] + 1)
        before_last, last = last, row
    return last[-1]


def name_fault(
    path: str, value: Any, what: str, known: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> Fault:
    """A name that is none of the known ones."""
    return Fault(
        path=path,
        value=shown(value),
        message=f"unknown {what}",
        allowed=", ".join(known),
        nearest=nearest_name(value, known, synonyms),
    )


def problems(*faults: Fault) -> PydanticCustomError:
    """What a validator raises to report several faults at once; paths are relative to the validated value."""
    text = "; ".join(map(str, faults))
    return PydanticCustomError(_PROBLEMS, "{text}", {"text": text, "faults": faults})


def one_error(allowed: str) -> WrapValidator:
    """Makes a union fail with one error that says what is allowed, not with one error per member."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("one_of_several", "must be {allowed}", {"allowed": allowed}) from None

    return WrapValidator(validate)


def _type_words(expected: str) -> Callable[[Mapping[str, Any]], tuple[str, str | None]]:
    return lambda _: (f"must be {expected}", expected)


def _bound(words: str, key: str) -> Callable[[Mapping[str, Any]], tuple[str, str | None]]:
    return lambda context: (f"must be {words} {context[key]}", f"{words} {context[key]}")


_WORDS: dict[str, Callable[[Mapping[str, Any]], tuple[str, str | None]]] = {
    "missing": lambda _: ("is required", None),
    "none_required": _type_words("null"),
    "literal_error": lambda c: ("is not one of the allowed values", str(c["expected"]).replace("'", "")),
    "string_type": _type_words("text (in quotes where YAML would read a number or a date)"),
    "string_too_short": lambda _: ("must not be empty", None),
    "bool_type": _type_words("true or false"),
    "int_type": _type_words("a whole number"),
    "int_parsing": _type_words("a whole number"),
    "float_type": _type_words("a number"),
    "float_parsing": _type_words("a number"),
    "finite_number": _type_words("a finite number"),
    "greater_than": _bound("greater than", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("less than", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "dict_type": _type_words("a mapping"),
    "model_type": _type_words("a mapping"),
    "tuple_type": _type_words("a list"),
    "list_type": _type_words("a list"),
    "too_short": lambda _: ("must not be empty", None),
    "value_error": lambda c: (str(c["error"]), None),
    "one_of_several": lambda c: (f"must be {c['allowed']}", str(c["allowed"])),
}


def words_of(kind: str, context: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """What a fault says and what is allowed, by the `type` and `ctx` of pydantic's error; None: no words."""
    words = _WORDS.get(kind)
    return None if words is None else words(context)


def _fault(error: ErrorDetails, path: str) -> list[Fault]:
    here = join_path(path, *(str(shown(part)) for part in error["loc"]))
    context = error.get("ctx", {})
    if error["type"] == _PROBLEMS:
        return [fault.below(here) for fault in context["faults"]]
    message, allowed = words_of(error["type"], context) or (error["msg"], context.get("allowed"))
    # For a missing key pydantic shows the mapping around it, which is not the value at this path.
    value = None if error["type"] == "missing" else error["input"]
    expected = context.get("expected", "") if error["type"] == "literal_error" else ""
    names = [name.strip("' ") for part in str(expected).split(",") for name in part.split(" or ")]
    return [
        Fault(
            path=here,
            value=shown(value),
            message=message,
            allowed=allowed,
            nearest=nearest_name(error["input"], names) if expected else None,
        )
    ]


def translate(error: ValidationError, path: str = "") -> list[Fault]:
    """The faults behind a pydantic error, with their paths below `path`."""
    return [fault for details in error.errors(include_url=False) for fault in _fault(details, path)]


def unknown_keys(
    raw: Mapping[str, Any],
    known: Sequence[str],
    path: str,
    synonyms: Mapping[str, str] | None = None,
    what: str = "key",
) -> list[Fault]:
    """One fault for each key of `raw` that is not known, at most `MAX_FAULTS`.

    One of them lists the known keys: the first for which none is near, or else the first.
    """
    nearest = {
        key: nearest_name(key, known, synonyms)
        for key in [key for key in raw if key not in known][:MAX_FAULTS]
    }
    lists = next((key for key, near in nearest.items() if near is None), next(iter(nearest), None))

    def allowed(key: str) -> str | None:
        if key == lists:
            return ", ".join(known)
        return None if nearest[key] else f"the same as for {shown(lists)}"

    return [
        Fault(
            path=join_path(path, str(shown(key))),
            value=shown(raw[key]),
            message=f"unknown {what}",
            allowed=allowed(key),
            nearest=near,
        )
        for key, near in nearest.items()
    ]


def read_model(model: type[Model], raw: Any, path: str, faults: list[Fault]) -> Model | None:
    """Validates a mapping as `model`, appending every fault; None when there was any."""
    # A field named after a Python keyword has its key as an alias.
    known = [field.alias or name for name, field in model.model_fields.items()]
    hidden = [name for name, field in model.model_fields.items() if SET_BY_SERVICE in field.metadata]
    offered = [name for name in known if name not in hidden]
    if not isinstance(raw, Mapping):
        keys = ", ".join(offered)
        faults.append(
            Fault(path=path, value=shown(raw), message="must be a mapping", allowed=f"the keys {keys}")
        )
        return None
    found = unknown_keys({key: value for key, value in raw.items() if key not in hidden}, offered, path)
    result = None
    try:
        result = model.model_validate({key: value for key, value in raw.items() if key in known})
    except ValidationError as error:
        found += translate(error, path)
    faults += found
    return None if found else result
