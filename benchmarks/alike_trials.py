"""Packs to be measured: trials that are all alike, on a base with random weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase
from workers.data.examples import Example
from workers.device.memory import (
    allocated_bytes,
    available_bytes,
    peak_bytes,
    release,
    reset_peak,
    tokens_per_forward,
)
from workers.lora.adapters import AdapterHost
from workers.lora.bank import MOST_SLOTS
from workers.lora.multi_lora import Form
from workers.pack.cost_model import Capacity, PackMember, plan_capacity
from workers.pack.learned_costs import LearnedCosts
from workers.training.objectives.language import Totals
from workers.training.optimizers import adapter_bytes
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

FORMS: tuple[Form, ...] = get_args(Form)
ALONE = "one at a time"
LEAST_SECONDS = 0.3
"""Of one measurement, however few optimizer steps were asked for."""
LEARNT_FROM = 16
"""Passes of one trial from which the engine's plan is made."""


@dataclass(frozen=True)
class Speed:
    """What one measurement came to."""

    seconds: float
    tokens: int
    """Of rows, padding left out."""
    padded: int
    """With it."""
    passes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over the rounds."""

    batch_size: int
    trials: int
    tokens_per_second: dict[str, float]
    """By form, and of one at a time."""
    packed: Form
    """The form that the engine chooses."""
    speedup: float
    """Packed over one at a time, the median of the rounds' ratios."""
    useful: float
    tokens_per_pass: float
    """Padding included."""
    peak_bytes: int
    share_of_peak: float | None


class Bench:
    """Trials of one batch size on one base."""

    def __init__(
        self, base: LoadedBase, examples: Sequence[Example], recipe: Recipe, token_budget: int | None
    ) -> None:
        self.host = AdapterHost(base, slots=MOST_SLOTS)  # as on a GPU, for the forms that need banks
        self.runs: list[TrialRun] = []
        self._examples = examples
        self._recipe = recipe
        self.grow(1)
        self.capacity = self._plan()
        self.token_budget = token_budget or self.capacity.pass_tokens

    def grow(self, trials: int) -> None:
        """Adds trials until there are so many."""
        while len(self.runs) < trials:
            number = len(self.runs)
            self.runs.append(self._new_run(f"trial-{number}", number))

    def _new_run(self, name: str, seed: int) -> TrialRun:
        recipe = self._recipe.model_copy(update={"seed": seed})
        adapter = self.host.add(name, recipe)
        start = Totals(math.log(self.host.base.vocabulary_size), correct=0, tokens=1)
        # Random tokens cannot be learned; nothing here is about how the loss goes.
        return TrialRun(recipe, adapter, self._examples, start=start, divergence_factor=1e9)

    def close(self) -> None:
        """Takes all trials off the base."""
        for run in self.runs:
            self.host.remove(run.adapter.name)
        self.runs.clear()
        release(self.host.base.device)

    def chosen_form(self) -> Form:
        """What the engine takes for all the trials in one pass."""
        return self.host.choose_form([run.adapter.rows(1) for run in self.runs])

    def measure(self, runs: Sequence[TrialRun], form: Form, *, steps: int, least_seconds: float) -> Speed:
        """Trains some of the trials together for so many optimizer steps each, on average."""
        device = self.host.base.device
        passes = SharedPasses(self.host, token_budget=self.token_budget, form=form)
        before = _tokens(runs)
        waiting = list(runs)
        done = count = 0
        _wait(device)
        started = time.perf_counter()
        while done < steps * len(runs) or time.perf_counter() - started < least_seconds:
            count += 1
            for advance in passes.train(waiting):
                if advance.ended is not None:
                    raise advance.ended
                done += advance.step is not None
                waiting.remove(advance.run)
                waiting.append(advance.run)
        _wait(device)
        seconds = time.perf_counter() - started
        if passes.token_budget < self.token_budget:
            print(f"out of memory: passes of {passes.token_budget:,} tokens from here on", flush=True)
            self.token_budget = passes.token_budget
        real, padded = (now - then for now, then in zip(_tokens(runs), before, strict=True))
        return Speed(seconds, real, padded, count)

    def row(self, forms: Sequence[Form], *, steps: int, rounds: int, flops: float, peak: float | None) -> Row:
        """Measures the trials there are, in turns."""
        packed = self.chosen_form()
        modes = [ALONE, *(form for form in FORMS if form in (*forms, packed))]
        for mode in modes:  # warms up
            self._measure(mode, 0, steps=1, least_seconds=0.0)
        speeds: dict[str, list[Speed]] = {mode: [] for mode in modes}
        peaks = []
        for round_ in range(rounds):
            for mode in modes[round_ % len(modes) :] + modes[: round_ % len(modes)]:
                reset_peak(self.host.base.device)
                speed = self._measure(mode, round_, steps=steps, least_seconds=LEAST_SECONDS)
                speeds[mode].append(speed)
                if mode == packed:
                    peaks.append(peak_bytes(self.host.base.device))
        rates = {mode: statistics.median(s.tokens_per_second for s in speeds[mode]) for mode in modes}
        pairs = zip(speeds[packed], speeds[ALONE], strict=True)
        together = speeds[packed]
        return Row(
            batch_size=self._recipe.batch_size,
            trials=len(self.runs),
            tokens_per_second=rates,
            packed=packed,
            speedup=statistics.median(one.tokens_per_second / two.tokens_per_second for one, two in pairs),
            useful=sum(s.tokens for s in together) / sum(s.padded for s in together),
            tokens_per_pass=sum(s.padded for s in together) / sum(s.passes for s in together),
            peak_bytes=max(peaks),
            share_of_peak=None if peak is None else rates[packed] * flops / peak,
        )

    def _measure(self, mode: str, round_: int, *, steps: int, least_seconds: float) -> Speed:
        if mode == ALONE:
            alone = self.runs[round_ % len(self.runs)]
            return self.measure([alone], "looped", steps=steps, least_seconds=least_seconds)
        form: Form = next(form for form in FORMS if form == mode)
        return self.measure(self.runs, form, steps=steps, least_seconds=least_seconds)

    def _plan(self) -> Capacity:
        """How many such trials the engine would hold, and how large its passes would be."""
        base, run = self.host.base, self._new_run("learnt-from", 0)
        learned = LearnedCosts(base)
        passes = SharedPasses(self.host, token_budget=tokens_per_forward(base.device))
        for _ in range(LEARNT_FROM):
            passes.train([run])
        self.host.remove(run.adapter.name)
        kept = adapter_bytes(
            run.adapter.trainable_parameters, self._recipe, accumulates=self._recipe.batch_size > 1
        )
        for sample in passes.meter.take():
            learned.learn(sample, adapter_bytes=kept)
        costs = learned.present()
        lengths = [len(example.input_ids) for example in self._examples]
        member = PackMember(
            tokens_per_step=max(1, round(sum(lengths) / len(lengths) * self._recipe.batch_size)),
            longest_tokens=max(lengths),
            adapter_bytes=kept,
        )
        return plan_capacity(
            costs.time,
            costs.memory,
            members=[member],
            available_bytes=available_bytes(base.device) + allocated_bytes(base.device),
            most=None,
        )


def _tokens(runs: Sequence[TrialRun]) -> tuple[int, int]:
    """Trained so far: without padding, and with it."""
    return sum(run.real_tokens for run in runs), sum(run.padded_tokens for run in runs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
