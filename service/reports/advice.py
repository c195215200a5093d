"""Advice for the next study, each piece with the numbers behind it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.recipe import Recipe
from search_spaces.wording import counted
from service.analysis.diagnosis import Finding, Verdict
from service.reports.bounds import at_an_end
from service.states import AttemptState

MIN_COMPLETED = 4
"""Completed trials below which the best one says nothing of the space."""
TOP_SHARE = 0.25
MIN_TOP = 3
"""The best trials that advice looks at: a quarter of those completed, but at least three."""
MIN_SHARE = 0.1
"""Trials that came to grief are worth a sentence from a tenth of all on, and from two."""
_NAMED = 10
"""Trials that a sentence names."""
NOISE_FACTOR = 2.0
"""Batches are called too large above twice the noise scale, too small below a quarter of it: it is known to
within a factor of about two (McCandlish et al. 2018, section 2.2)."""


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """What advice looks at of one ended trial of the search."""

    number: int
    state: AttemptState
    params: Mapping[str, Any]
    """As recipe values."""
    recipe: Recipe | None = None
    value: float | None = None
    """The objective; None unless it completed."""
    feasible: bool = True
    findings: Sequence[Finding] = ()
    gradient_noise_scale: float | None = None
    examples_seen: int = 0

    def has(self, *verdicts: Verdict) -> bool:
        return any(finding.verdict in verdicts for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do, and why."""

    about: str
    """A recipe field, or a section of the definition."""
    sentence: str


def advise(
    definition: StudyDefinition,
    trials: Sequence[TrialFacts],
    *,
    preparation: Preparation = NOTHING,
    winner: int | None = None,
    distinguishable: bool | None = None,
) -> list[Advice]:
    """Advice from the ended trials of a study's search.

    Args:
        definition: the study's.
        trials: its ended trials, repeats left out.
        preparation: bounds that a range test has found.
        winner: the best trial's number, where repeats decided it; None: the best value decides.
        distinguishable: whether the first is from the second; None: it was not tested.
    """
    sign = 1.0 if definition.objective.direction == "minimize" else -1.0
    ranked = sorted(
        (t for t in trials if t.value is not None and t.feasible),
        key=lambda t: (t.number != winner, sign * (t.value or 0.0), t.number),
    )
    advice = [*_constraints(definition, trials), *_memory(trials), *_too_hot(trials)]
    if len(ranked) < MIN_COMPLETED <= sum(t.state is AttemptState.COMPLETED for t in trials):
        return advice  # those that completed broke a constraint, which is said already
    if len(ranked) < MIN_COMPLETED:
        text = (
            f"{counted(len(ranked), 'completed trial is', 'completed trials are')} too few to"
            " judge the search space: run more trials."
        )
        return [*advice, Advice(about="search.trials", sentence=text)]
    top = ranked[: max(MIN_TOP, math.ceil(TOP_SHARE * len(ranked)))]
    advice += _ends(definition, preparation, top)
    advice += _length(definition, top)
    advice += _idle_halves(ranked)
    advice += _batch_size(definition, ranked[0])
    if distinguishable is False:
        text = "The best two recipes are not distinguishable: use the cheaper one, or repeat with more seeds."
        advice.append(Advice(about="repeats", sentence=text))
    return advice


# -- trials that came to grief -------------------------------------------------------------------------


def _constraints(definition: StudyDefinition, trials: Sequence[TrialFacts]) -> Iterator[Advice]:
    completed = [t for t in trials if t.state is AttemptState.COMPLETED]
    broken = sum(not t.feasible for t in completed)
    if broken >= max(1, MIN_SHARE * len(completed)) and definition.constraints:
        names = ", ".join(definition.constraints)
        text = (
            f"{broken} of {counted(len(completed), 'completed trial')} broke a constraint ({names}) and"
            " cannot be the best: loosen the constraint, or remove the values that break it from the space."
        )
        yield Advice(about="constraints", sentence=text)


def _memory(trials: Sequence[TrialFacts]) -> Iterator[Advice]:
    out = [t for t in trials if t.state is AttemptState.OUT_OF_MEMORY]
    if len(out) < max(1, MIN_SHARE * len(trials)):
        return
    alike = {
        name: value
        for name, value in out[0].params.items()
        if all(t.params.get(name) == value for t in out) and any(t.params.get(name) != value for t in trials)
    }
    shared = ", ".join(f"{name} {_shown(value)}" for name, value in alike.items())
    text = f"{len(out)} of {counted(len(trials), 'trial')} ran out of memory, alone and one example at a time"
    text += (
        f" (all with {shared}): remove that value, or use a larger GPU." if shared and len(out) > 1 else "."
    )
    yield Advice(about="search.space", sentence=text)


def _too_hot(trials: Sequence[TrialFacts]) -> Iterator[Advice]:
    """Where the learning rate begins to be too high: the rate that best separates the trials."""
    hot = (Verdict.DIVERGED, Verdict.LEARNING_RATE_TOO_HIGH)
    rated = [(t.recipe.peak_learning_rate, t.has(*hot)) for t in trials if t.recipe is not None]
    count = sum(is_hot for _, is_hot in rated)
    if count < max(2, MIN_SHARE * len(rated)):
        return
    diverged = sum(t.state is AttemptState.DIVERGED for t in trials)
    how = (
        "diverged"
        if diverged == count
        else "oscillated or fell behind"
        if not diverged
        else "diverged or oscillated"
    )
    rates = sorted({rate for rate, is_hot in rated if is_hot})
    errors = {rate: sum((own >= rate) != is_hot for own, is_hot in rated) for rate in rates}
    split = min(rates, key=lambda rate: (errors[rate], rate))
    above = [is_hot for rate, is_hot in rated if rate >= split]
    if errors[split] < min(count, len(rated) - count + 1) and sum(above) > len(above) / 2:
        text = (
            f"{count} of {len(rated)} trials {how}, {sum(above)} of them among the {len(above)} with a peak"
            f" learning rate of {split:.3g} or more: lower the upper bound."
        )
    else:
        text = (
            f"{count} of {len(rated)} trials {how}, at peak learning rates from {rates[0]:.3g} to"
            f" {rates[-1]:.3g}, where other trials did not: the rate alone does not explain it."
        )
    yield Advice(about="learning_rate", sentence=text)


# -- what the best trials have in common ---------------------------------------------------------------


def _ends(
    definition: StudyDefinition, preparation: Preparation, top: Sequence[TrialFacts]
) -> Iterator[Advice]:
    best = top[0]
    for name, parameter in definition.search.space.parameters.items():
        if name not in best.params:
            continue
        values = [t.params[name] for t in top if name in t.params]
        tested = preparation.learning_rate_bounds if name == "learning_rate" else None
        if tested is not None and isinstance(parameter, Float | Int):
            low, high = tested
        elif isinstance(parameter, Choice):
            low, high = None, None
        else:
            low, high = float(parameter.min), float(parameter.max)
        end = at_an_end(name, parameter, values, low=low, high=high)
        if end is not None:
            yield Advice(about=name, sentence=end + (" (The bounds are the range test's.)" if tested else ""))


def _length(definition: StudyDefinition, top: Sequence[TrialFacts]) -> Iterator[Advice]:
    of = f"of the best {len(top)} trials"
    falling = [t for t in top if t.has(Verdict.UNDER_TRAINED, Verdict.LEARNING_RATE_TOO_LOW)]
    over = [t for t in top if t.has(Verdict.OVERFITTING)]
    if top[0] in falling and 2 * len(falling) > len(top):
        which = _which(falling)
        text = f"epochs: {len(falling)} {of} ({which}) are under-trained: search {_more(definition, top)}."
        yield Advice(about="epochs", sentence=text)
    if top[0] in over and 2 * len(over) > len(top):
        rungs = [f.rung for t in over for f in t.findings if f.verdict is Verdict.OVERFITTING and f.rung]
        text = (
            f"epochs: {len(over)} {of} ({_which(over)}) overfit, from {min(rungs):,} examples on: search"
            " fewer epochs, more dropout or weight decay, or end such trials with evaluation.overfit_rungs."
        )
        yield Advice(about="epochs", sentence=text)


def _more(definition: StudyDefinition, top: Sequence[TrialFacts]) -> str:
    if "epochs" in definition.search.space.parameters:
        return f"more than {counted(definition.max_epochs, 'epoch')}"
    epochs = top[0].recipe.epochs if top[0].recipe else build_recipe(definition, top[0].params).epochs
    return f"more epochs than the recipe has ({epochs:g})"


def _idle_halves(ranked: Sequence[TrialFacts]) -> Iterator[Advice]:
    idle = [t for t in ranked if t.has(Verdict.PLATEAUED_EARLY)]
    if len(idle) >= 2 and 2 * len(idle) > len(ranked):
        text = (
            f"epochs: {len(idle)} of {len(ranked)} completed trials improved very little in their second"
            " half: fewer epochs are enough."
        )
        yield Advice(about="epochs", sentence=text)


def _batch_size(definition: StudyDefinition, best: TrialFacts) -> Iterator[Advice]:
    scale = best.gradient_noise_scale
    if scale is None or best.recipe is None:
        return
    parameter = definition.search.space.parameters.get("batch_size")
    if parameter is None:
        sizes = [best.recipe.batch_size]
    elif isinstance(parameter, Choice):
        sizes = [int(size) for size in parameter.choices]
    else:
        sizes = [int(parameter.min), int(parameter.max)]
    # An average that early steps decide (`training.noise_scale`): it says little of the end of training.
    about = f"the noise scale of the best trial is about {_examples(scale)} examples, early in training"
    if max(sizes) > NOISE_FACTOR * scale:
        goes = "the recipe has" if parameter is None else "the space goes up to"
        text = f"batch_size: {about}: batches above that waste examples there, and {goes} {max(sizes)}."
        yield Advice(about="batch_size", sentence=text)
    elif max(sizes) < scale / (2 * NOISE_FACTOR):
        text = (
            f"batch_size: {about}: batches up to that need fewer steps at little cost in examples, and"
            f" {'the recipe has' if parameter is None else 'the space ends at'} {max(sizes)}."
        )
        yield Advice(about="batch_size", sentence=text)


def _examples(scale: float) -> str:
    return f"{scale:.2g}" if scale < 1 else f"{round(scale):,}"


def _which(trials: Sequence[TrialFacts]) -> str:
    numbers = [str(number) for number in sorted(t.number for t in trials)]
    more = len(numbers) - _NAMED
    return ", ".join(numbers) if more <= 0 else f"{', '.join(numbers[:_NAMED])} and {more:,} more"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
