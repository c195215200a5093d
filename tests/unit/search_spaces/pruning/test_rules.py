"""The rules prune as Optuna's pruners do where those follow the same rule, and depend on reports alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.trial import TrialState

from search_spaces.pruning.findings import (
    BehindPeers,
    BeyondThreshold,
    NoImprovement,
    PruningFinding,
    TooEarly,
    WorseThanBest,
)
from search_spaces.pruning.rules import Judge, RungCurve
from search_spaces.pruning.specs import PRUNING_SPECS
from workers.training.rungs import rung_reached

optuna.logging.set_verbosity(optuna.logging.WARNING)


def judge(
    *, minimize: bool = True, seed: int = 0, every: int = 100, longest: int = 900, **spec: Any
) -> Judge:
    return Judge(
        spec=PRUNING_SPECS[spec["algorithm"]].model_validate(spec),  # type: ignore[arg-type]
        minimize=minimize,
        every_examples=every,
        max_examples=longest,
        seed=seed,
    )


def curve(
    number: int, *rungs: tuple[int, float], value: float | None = None, feasible: bool = True
) -> RungCurve:
    return RungCurve(number=number, rungs=rungs, value=value, feasible=feasible)


def at(number: int, value: float, *, completed: bool = False, rungs: Iterable[int] = (100,)) -> RungCurve:
    """A trial with the same value at each rung."""
    return curve(number, *((rung, value) for rung in rungs), value=value if completed else None)


def asked(of: Judge, trial: RungCurve, peers: Sequence[RungCurve]) -> PruningFinding | None:
    return of.judge(trial, lambda: peers)


class Both:
    """A study in Optuna with its pruner, judged by the rules too."""

    def __init__(self, pruner: BasePruner, rules: Judge, *, name: str = "0") -> None:
        direction = "minimize" if rules.minimize else "maximize"
        self.study = optuna.create_study(study_name=name, direction=direction, pruner=pruner)
        self.rules = rules
        self.verdicts: list[tuple[bool, bool]] = []

    def curves(self) -> list[RungCurve]:
        return [
            RungCurve(
                number=trial.number,
                rungs=tuple(sorted(trial.intermediate_values.items())),
                value=trial.value if trial.state is TrialState.COMPLETE else None,
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def report(self, trial: optuna.Trial, rung: int, value: float) -> bool:
        trial.report(value, rung)
        curves = self.curves()
        mine = curves.pop(trial.number)
        finding = asked(self.rules, mine, curves)
        assert finding == asked(self.rules, mine, curves[::-1]), "no order of trials matters"
        self.verdicts.append((finding is not None, trial.should_prune()))
        return self.verdicts[-1][1]

    def run(self, dice: random.Random, *, trials: int, rungs: Sequence[int], ties: bool) -> None:
        """Trials of random values, several alive at a time, each pruned as Optuna says."""
        live: dict[int, tuple[optuna.Trial, int, float]] = {}
        started = 0
        while started < trials or live:
            if started < trials and len(live) < 4:
                trial = self.study.ask()
                live[trial.number] = (trial, 0, dice.gauss(0, 1))
                started += 1
                continue
            number = dice.choice(sorted(live))
            trial, done, quality = live.pop(number)
            value = quality + dice.gauss(0, 0.5)
            if self.report(trial, rungs[done], round(value) if ties else value):
                self.study.tell(trial, state=TrialState.PRUNED)
            elif done + 1 == len(rungs):
                self.study.tell(trial, value)
            else:
                live[number] = (trial, done + 1, quality)


PAPERS_ASHA: dict[str, Any] = {"algorithm": "asha", "reduction_factor": 3, "n_min_trials": 1}
"""The rule of the paper, and of Optuna: whoever comes second is judged. The defaults are gentler."""
HUNDREDS = tuple(range(100, 1000, 100))
SAME_RULES: list[tuple[dict[str, Any], Callable[[], BasePruner]]] = [
    ({"algorithm": "median", "n_startup_trials": 3}, lambda: MedianPruner(3)),
    (
        {"algorithm": "median", "n_startup_trials": 0, "min_examples": 200, "interval_examples": 200},
        lambda: MedianPruner(0, 200, 200),
    ),
    (
        {"algorithm": "percentile", "percentile": 30, "n_startup_trials": 1, "n_min_trials": 3},
        lambda: PercentilePruner(30, 1, n_min_trials=3),
    ),
    (
        {"algorithm": "asha", "min_examples": 100, "reduction_factor": 3, "n_min_trials": 1},
        lambda: SuccessiveHalvingPruner(min_resource=100, reduction_factor=3),
    ),
    (
        {"algorithm": "asha", "reduction_factor": 2, "n_min_trials": 1, "bootstrap_count": 3},
        lambda: SuccessiveHalvingPruner(min_resource=100, reduction_factor=2, bootstrap_count=3),
    ),
    (
        {"algorithm": "hyperband", "min_examples": 100, "max_examples": 900},
        lambda: HyperbandPruner(min_resource=100, max_resource=900, reduction_factor=3),
    ),
    (
        {"algorithm": "hyperband", "reduction_factor": 2},
        lambda: HyperbandPruner(min_resource=100, max_resource=900, reduction_factor=2),
    ),
    (
        {"algorithm": "threshold", "lower": -1, "upper": 1, "min_examples": 150, "interval_examples": 200},
        lambda: ThresholdPruner(-1, 1, 150, 200),
    ),
    ({"algorithm": "patient", "patience": 2, "min_delta": 0.25}, lambda: PatientPruner(None, 2, 0.25)),
    (
        {
            "algorithm": "patient",
            "patience_examples": 100,
            "wrapped": {"algorithm": "median", "n_startup_trials": 2},
        },
        lambda: PatientPruner(MedianPruner(2), 1),
    ),
]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("minimize", [True, False], ids=["minimize", "maximize"])
@pytest.mark.parametrize(("spec", "pruner"), SAME_RULES, ids=[spec["algorithm"] for spec, _ in SAME_RULES])
def test_the_rules_agree_with_optuna_report_by_report(
    spec: dict[str, Any], pruner: Callable[[], BasePruner], minimize: bool, ties: bool
) -> None:
    pruned = spared = 0
    for seed in range(6):
        both = Both(pruner(), judge(minimize=minimize, **spec))
        both.run(random.Random(seed), trials=25, rungs=HUNDREDS, ties=ties)
        assert [ours for ours, _ in both.verdicts] == [theirs for _, theirs in both.verdicts]
        pruned += sum(verdict for verdict, _ in both.verdicts)
        spared += sum(not verdict for verdict, _ in both.verdicts)
    assert pruned > 5
    assert spared > 5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("minimize", [True, False], ids=["minimize", "maximize"])
def test_wilcoxon_agrees_with_optuna_where_both_trials_have_all_rungs(minimize: bool) -> None:
    """Before that, Optuna compares the mean of what the trial has with that of the best one's whole curve,
    which for a loss that falls spares nearly every trial."""
    dice = random.Random(0)
    both = Both(
        WilcoxonPruner(p_threshold=0.2, n_startup_steps=4),
        judge(minimize=minimize, algorithm="wilcoxon", p_threshold=0.2, n_startup_rungs=4),
    )
    rungs = HUNDREDS[:6]
    for _ in range(40):
        trial = both.study.ask()
        quality = dice.gauss(0, 0.5)
        values = [quality + dice.gauss(0, 1) for _ in rungs]
        for rung, value in zip(rungs, values, strict=True):
            trial.report(value, rung)
        curves = both.curves()
        mine = curves.pop(trial.number)
        both.verdicts.append((asked(both.rules, mine, curves) is not None, trial.should_prune()))
        both.study.tell(trial, sum(values) / len(values))
    assert [ours for ours, _ in both.verdicts] == [theirs for _, theirs in both.verdicts]
    assert {ours for ours, _ in both.verdicts} == {True, False}


# -- what is found --------------------------------------------------------------------------------------


def test_halving_keeps_the_best_share_of_those_that_came_before() -> None:
    rules = judge(**PAPERS_ASHA)
    peers = [at(number, float(number)) for number in range(1, 9)]
    assert asked(rules, at(9, 3.0), peers) is None
    assert asked(rules, at(9, 3.5), peers) == BehindPeers(rung=100, value=3.5, cut_off=3.0, peers=8)
    better = judge(**PAPERS_ASHA, minimize=False)
    assert asked(better, at(9, 5.5), peers) == BehindPeers(rung=100, value=5.5, cut_off=6.0, peers=8)


def test_halving_judges_at_its_levels_alone() -> None:
    rules = judge(**PAPERS_ASHA)
    peers = [at(number, 0.0, rungs=HUNDREDS) for number in range(6)]
    judged = [rung for rung in HUNDREDS if asked(rules, at(9, 1.0, rungs=range(100, rung + 1, 100)), peers)]
    assert judged == [100, 300, 900]


def test_halving_spares_trials_until_enough_others_have_come() -> None:
    rules = judge(algorithm="asha", reduction_factor=3, n_min_trials=3)
    assert asked(rules, at(9, 9.0), [at(0, 0.0), at(1, 0.0)]) is None
    assert asked(rules, at(9, 9.0), [at(0, 0.0), at(1, 0.0), at(2, 0.0)]) is not None


def test_halving_can_prune_those_that_come_first_instead() -> None:
    rules = judge(**PAPERS_ASHA, bootstrap_count=2)
    assert asked(rules, at(9, 0.0), [at(0, 9.0)]) == TooEarly(rung=100, value=0.0, bootstrap_count=2)
    assert asked(rules, at(9, 0.0), [at(0, 9.0), at(1, 9.0)]) is None


def test_no_trial_is_pruned_after_the_last_examples() -> None:
    peers = [at(number, 0.0, completed=True, rungs=HUNDREDS) for number in range(9)]
    trial = at(9, 1.0, rungs=HUNDREDS)
    for spec in (
        PAPERS_ASHA,
        {"algorithm": "median"},
        {"algorithm": "percentile"},
        {"algorithm": "threshold", "upper": 0.5},
        {"algorithm": "wilcoxon"},
        {"algorithm": "patient", "patience": 2, "wrapped": {"algorithm": "median"}},
    ):
        falling = curve(9, (100, 0.5), *((rung, 1.0) for rung in HUNDREDS[1:]))
        own = falling if spec["algorithm"] == "patient" else trial
        assert asked(judge(**spec, max_examples=900), own, peers) is not None, spec
        assert asked(judge(**spec, max_examples=899), own, peers) is None, spec


def test_trials_of_different_batch_sizes_meet_at_the_same_rungs() -> None:
    """Steps of 32 examples pass 100 at 128, and the report says 100."""
    rules = judge(algorithm="asha", reduction_factor=2, n_min_trials=1)

    def rungs(batch_size: int) -> list[int]:
        seen = range(0, 900 + batch_size, batch_size)
        reached = (rung_reached(a, b, every=100, total=900) for a, b in itertools.pairwise(seen))
        return [rung for rung in reached if rung is not None]

    assert rungs(32)[:3] == rungs(4)[:3] == rungs(7)[:3] == [100, 200, 300]
    peers = [at(number, float(number), rungs=rungs(batch)[:1]) for number, batch in enumerate((4, 32, 7))]
    for batch in (4, 7, 32):
        found = asked(rules, at(9, 1.5, rungs=rungs(batch)[:1]), peers)
        assert found == BehindPeers(rung=100, value=1.5, cut_off=1.0, peers=3)


def test_a_trial_that_passes_over_a_rung_is_not_compared_with_those_that_stood_there() -> None:
    rules = judge(algorithm="asha", reduction_factor=2, n_min_trials=1)
    wide = curve(9, (200, 5.0))  # of batch size 200, with a rung at each 100
    assert asked(rules, wide, [at(0, 1.0), at(1, 1.0)]) is None
    assert asked(rules, at(9, 5.0), [curve(0, (200, 1.0)), curve(1, (300, 1.0))]) is None
    peers = [at(0, 1.0), at(1, 1.0), at(2, 0.5, rungs=(100, 200))]
    assert asked(rules, wide, peers) == BehindPeers(rung=200, value=5.0, cut_off=0.5, peers=1)


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 10_000))
def test_a_trial_of_hyperband_is_judged_in_one_bracket_whenever_it_is_asked(seed: int, number: int) -> None:
    """Better than nobody, so pruned at the first level of its bracket, among its own."""
    peers = [at(other, 0.0, rungs=HUNDREDS) for other in range(10_001, 10_101)]
    rules = judge(algorithm="hyperband", seed=seed)
    judged = [
        rung for rung in HUNDREDS if asked(rules, at(number, 1.0, rungs=range(100, rung + 1, 100)), peers)
    ]
    assert judged in ([100, 300, 900], [300, 900], [900])


def test_hyperband_gives_its_brackets_the_same_budget() -> None:
    rules = judge(algorithm="hyperband", seed=7)
    peers = [at(other, 0.0, rungs=HUNDREDS) for other in range(1_000, 1_500)]
    first = [
        next(
            rung
            for rung in (100, 300, 900)
            if asked(rules, at(n, 1.0, rungs=range(100, rung + 1, 100)), peers)
        )
        for n in range(900)
    ]
    # Of three brackets, for reduction factor 3: ceil(3 * 9 / 3), ceil(3 * 3 / 2) and ceil(3 * 1 / 1) trials.
    expected = {100: 9 / 17, 300: 5 / 17, 900: 3 / 17}
    for rung, share in expected.items():
        assert first.count(rung) / 900 == pytest.approx(share, abs=0.05)


def test_a_threshold_says_which_end_was_passed() -> None:
    rules = judge(algorithm="threshold", lower=0.5, upper=2.0)
    for value, side, threshold in ((2.5, "above", 2.0), (0.25, "below", 0.5)):
        assert asked(rules, at(0, value), []) == BeyondThreshold(
            rung=100,
            value=value,
            threshold=threshold,
            side=side,  # type: ignore[arg-type]
        )
    assert asked(rules, at(0, 2.0), []) is None


def test_wilcoxon_compares_with_the_best_feasible_completed_trial_at_the_rungs_of_both() -> None:
    rules = judge(algorithm="wilcoxon", p_threshold=0.1)
    rungs = HUNDREDS[:4]
    best = at(3, 1.0, completed=True, rungs=HUNDREDS)
    peers = [
        best,
        at(4, 2.0, completed=True, rungs=HUNDREDS),
        at(5, 0.1, rungs=HUNDREDS),
        curve(6, *((rung, 0.1) for rung in HUNDREDS), value=0.1, feasible=False),
    ]
    trial = curve(9, *((rung, 1.5 + rung / 1000) for rung in rungs))
    assert asked(rules, trial, peers) == WorseThanBest(
        rung=400, value=1.9, best=3, pairs=4, difference=0.75, p=0.0625, p_threshold=0.1
    )
    assert asked(judge(algorithm="wilcoxon", p_threshold=0.06), trial, peers) is None
    assert asked(judge(algorithm="wilcoxon", n_startup_rungs=5), trial, peers) is None
    assert asked(rules, trial, [at(3, 1.0, rungs=HUNDREDS)]) is None, "nobody has completed"
    assert asked(rules, trial, [at(3, 1.0, completed=True, rungs=(50, 150))]) is None, "no rung in common"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_wilcoxon_spares_a_trial_that_equals_the_best_or_beats_it(value: float) -> None:
    rules = judge(algorithm="wilcoxon", p_threshold=0.9)
    best = at(3, 1.0, completed=True, rungs=HUNDREDS)
    assert asked(rules, at(9, value, rungs=HUNDREDS), [best]) is None


def test_patience_is_counted_in_examples_whatever_the_batch_size() -> None:
    """A trial that reports half as often has waited as long after half as many reports."""
    rules = judge(algorithm="patient", patience=2, every=100)
    often = curve(0, *zip(HUNDREDS, (3.0, 2.0, 1.0, 1.5, 1.5, 1.5), strict=False))
    seldom = curve(1, (100, 2.0), (300, 1.0), (500, 1.5), (600, 1.5))
    expected = NoImprovement(rung=600, value=1.5, best=1.0, best_rung=300, min_delta=0.0)
    assert asked(rules, often, []) == asked(rules, seldom, []) == expected
    earlier = curve(0, *often.rungs[:-1])
    assert asked(rules, earlier, []) is None
    same = judge(algorithm="patient", patience_examples=200, every=100)
    assert (asked(same, often, []), asked(same, earlier, [])) == (expected, None)


def test_patience_lets_the_wrapped_pruner_decide() -> None:
    rules = judge(algorithm="patient", patience=0, wrapped={"algorithm": "median", "n_startup_trials": 1})
    worse = curve(9, (100, 1.0), (200, 1.2))
    good, bad = at(0, 0.5, completed=True, rungs=HUNDREDS), at(0, 1.5, completed=True, rungs=HUNDREDS)
    found = asked(rules, worse, [good])
    assert isinstance(found, NoImprovement)
    assert found.wrapped == BehindPeers(rung=200, value=1.0, cut_off=0.5, peers=1)
    assert found.wrapped_algorithm == "median"
    assert asked(rules, worse, [bad]) is None
    assert asked(rules, curve(9, (100, 1.0), (200, 1.0)), [good]) is None


def test_what_halving_said_at_its_level_stands_until_patience_has_ended() -> None:
    rules = judge(algorithm="patient", patience=1, wrapped=PAPERS_ASHA)
    peers = [at(number, 0.5, rungs=HUNDREDS) for number in range(3)]
    values = ((100, 1.0), (200, 1.1), (300, 0.9), (400, 1.0), (500, 1.0))
    verdicts = [asked(rules, curve(9, *values[:count]), peers) for count in range(1, 6)]
    assert verdicts[:4] == [None] * 4
    last = verdicts[4]
    assert isinstance(last, NoImprovement)
    assert last.wrapped == BehindPeers(rung=300, value=0.9, cut_off=0.5, peers=3)
