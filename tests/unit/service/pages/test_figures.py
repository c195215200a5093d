"""The plots of pages: what is drawn, what is left out, and that Plotly accepts them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from plotly.graph_objects import Figure as Plotly

from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from service.analysis.diagnosis import Verdict
from service.pages.figures import curves, front, importance, progress, range_test, style
from service.pages.figures.curves import TrialCurve, by_interest, curves_figure
from service.pages.figures.parallel import TrialPoint, parallel_figure
from service.pages.figures.progress import Ended, Meter, Spent, progress_figure
from service.pages.figures.timeline import AttemptSpan, place, timeline_figure
from service.pages.figures.trend import Missed, Sweep, trend_figure
from service.range_tests.schemas import BoundsView, CornerView, CurvePointView, RangeTestView
from service.reports.schemas import ImportanceView, ParameterImportanceView
from service.states import AttemptState, StudyState
from service.studies.schemas import ParetoPoint

AT = datetime(2026, 3, 1, 21, 0, tzinfo=UTC)
FOREIGN = '<b onclick="x">&lt;script>'


def drawn(figure: style.Figure | None) -> Plotly:
    """The figure as Plotly has it, which refuses what it does not know."""
    assert figure is not None
    text = json.dumps(figure.plot, allow_nan=False)
    for name in ("ink", "line", "muted", "veil", "paper", "on-colour", "best", "running", *COLOURS):
        text = text.replace(f'"--{name}"', '"#123456"')
    assert '"--' not in text
    return Plotly(json.loads(text))


COLOURS = {look.colour.removeprefix("--") for look in style.LOOKS.values()}


def trace(figure: style.Figure | None, name: str) -> dict[str, Any]:
    assert figure is not None
    return next(one for one in figure.plot["data"] if one["name"] == name)


def sec(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


# -- shared --------------------------------------------------------------------------------------------


def test_every_outcome_of_an_attempt_has_a_look_and_no_two_differ_by_colour_alone() -> None:
    assert set(style.LOOKS) == {*AttemptState, "repeat"}
    shapes = [(look.dash, look.symbol, look.pattern) for look in style.LOOKS.values()]
    assert len(set(shapes)) == len(shapes)


def test_text_from_elsewhere_is_shown_and_not_read() -> None:
    assert style.text(FOREIGN) == '&lt;b onclick="x"&gt;&amp;lt;script&gt;'
    assert len(style.text("x" * 1000)) == 80


def test_ticks_of_a_logarithmic_axis_are_whole_numbers() -> None:
    assert style.log_ticks(0.02, 3)["ticktext"] == [
        "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50",
    ]  # fmt: skip
    assert style.log_ticks(1e-7, 1.0)["ticktext"][:2] == ["1e-07", "1e-06"]
    assert style.scaled([1.0, 2.0]) == style.scaled([-1.0, 100.0]) == style.scaled([]) == {"type": "linear"}
    assert style.scaled([0.01, 1.0])["type"] == "log"


# -- curves --------------------------------------------------------------------------------------------


def curve(number: int, state: str = "completed", *values: float) -> TrialCurve:
    return TrialCurve(number=number, state=state, points=[(100 * (n + 1), v) for n, v in enumerate(values)])


def test_curves_are_grouped_by_outcome_and_the_best_stands_alone() -> None:
    found = curves_figure(
        [curve(0, "completed", 2, 1), curve(1, "pruned", 3), curve(2, "completed", 2.5, 2)], "loss", 0
    )
    drawn(found)
    assert found is not None
    assert [one["name"] for one in found.plot["data"]] == ["completed", "pruned", "trial 0, the best"]
    assert trace(found, "completed")["x"] == [100, 200, None]
    assert trace(found, "pruned")["text"] == ["trial 1, pruned: 3 at 100 examples", ""]
    assert found.table is not None
    assert found.table.rows[0] == (0, "completed", 2, "1", "2", "1 at 200 examples")
    assert found.note == ""


def test_what_has_diverged_does_not_hide_the_others() -> None:
    found = curves_figure([curve(0, "completed", 2, 1), curve(1, "diverged", 2, 1e30)], "loss", 0)
    axis = drawn(found).layout.yaxis
    assert axis.range == pytest.approx((0.95, 2.05))
    assert found is not None
    assert "Diverged trials leave the plot" in found.note


def test_of_many_curves_the_best_and_the_latest_are_shown_and_it_says_so() -> None:
    every = [curve(n, "running" if n == 3 else "completed", n + 1.0) for n in range(1000)]
    ordered = by_interest(every, {n: 999 - n for n in range(1000) if n != 3})
    assert [one.number for one in ordered[:2]] == [999, 998]
    assert ordered[curves.MOST_CURVES // 3].number == 3
    found = curves_figure(ordered, "loss", 999)
    assert found is not None
    assert found.note.startswith("150 of 1,000 curves are shown")
    assert found.table is not None
    assert len(found.table.rows) == style.TABLE_ROWS


def test_long_curves_keep_their_ends() -> None:
    points = [(n, float(n)) for n in range(1000)]
    thin = curves.thinned(points)
    assert (len(thin), thin[0], thin[-1]) == (curves.MOST_POINTS, points[0], points[-1])
    assert curves.thinned(points[:5]) == points[:5]


def test_without_an_evaluation_there_is_no_plot() -> None:
    assert curves_figure([curve(0, "running")], "loss", None) is None


# -- parallel coordinates ------------------------------------------------------------------------------

SPACE: dict[str, Float | Int | Choice] = {
    "learning_rate": Float(min=1e-4, max=1e-2, scale="log"),
    "lora_r": Choice(choices=(16, 4, 8)),
    "target_modules": Choice(choices=("all-linear", "attention")),
    "epochs": Int(min=1, max=3),
}


def test_each_hyperparameter_has_its_own_scale() -> None:
    trials = [
        TrialPoint(
            number=n,
            state="completed",
            params={"learning_rate": 1e-3, "lora_r": 8, "target_modules": "attention", "epochs": 1},
            value=float(n),
        )
        for n in range(5)
    ]
    found = parallel_figure(
        [*trials, TrialPoint(number=9, state="pruned", params={"epochs": 3}, value=None)],
        SPACE,
        "loss",
        minimize=True,
    )
    drawn(found)
    best = trace(found, "best 3")
    assert best["y"][:6] == [pytest.approx(0.5), 0.5, 1.0, 0.0, 0.0, None]
    assert trace(found, "pruned")["y"] == [None, None, None, 1.0, None, None]  # inactive, and without a value
    assert found is not None
    assert (
        found.note == "Each line is a trial; bold ones are the best 3 of 5 completed. Of loss, low is good."
    )


def test_values_that_a_range_test_moved_beyond_the_space_stay_on_the_axis() -> None:
    trials = [TrialPoint(number=n, state="completed", params={"epochs": 5}, value=1.0) for n in range(2)]
    found = parallel_figure(trials, {"epochs": Int(min=1, max=3)}, "loss", minimize=False)
    assert trace(found, "best 2")["y"][0] == 1.0


def test_axes_and_lines_are_bounded_and_it_says_so() -> None:
    space: dict[str, Float | Int | Choice] = {f"p{n}": Int(min=0, max=1) for n in range(14)}
    trials = [TrialPoint(number=n, state="completed", params={"p0": 1}, value=float(n)) for n in range(1000)]
    found = parallel_figure(trials, space, "loss", minimize=True)
    assert found is not None
    assert "300 of 1,000 trials are shown: the best first." in found.note
    assert "10 of 14 hyperparameters are shown" in found.note
    assert parallel_figure(trials[:1], space, "loss", minimize=True) is None


def test_without_a_completed_trial_the_others_are_shown() -> None:
    trials = [TrialPoint(number=n, state="failed", params={"epochs": n}, value=None) for n in (1, 2)]
    found = parallel_figure(trials, {"epochs": Int(min=1, max=3)}, "loss", minimize=True)
    drawn(found)
    assert found is not None
    assert found.note == "Each line is a trial; none has completed."


# -- best so far ---------------------------------------------------------------------------------------


def test_a_meter_adds_what_grew_side_by_side() -> None:
    meter = Meter([Spent(start=sec(0), end=sec(10), amount=10), Spent(start=sec(5), end=sec(15), amount=20)])
    assert [meter.until(sec(at)) for at in (-1, 0, 5, 10, 15, 99)] == pytest.approx([0, 0, 5, 20, 30, 30])
    assert (
        Meter([Spent(start=sec(3), end=sec(3), amount=7)]).until(sec(9)) == 0.0
    )  # a clock that was set back


def test_the_best_so_far_falls_when_a_trial_is_better() -> None:
    ended = [Ended(number=n, at=sec(n), value=v) for n, v in ((1, 3.0), (3, 1.0), (2, 4.0))]
    meter = Meter([Spent(start=sec(0), end=sec(4), amount=400)])
    found = progress_figure(ended, meter, metric="loss", minimize=True, unit="training examples", key="k")
    drawn(found)
    assert trace(found, "best so far")["x"] == pytest.approx([100, 300, 300])
    assert trace(found, "best so far")["y"] == [3.0, 1.0, 1.0]
    assert trace(found, "completed trials")["y"] == [3.0, 4.0, 1.0]
    assert found is not None
    assert found.table is not None
    assert found.table.rows == [(1, "3", "100"), (3, "1", "300")]
    best = progress_figure(ended, meter, metric="f1", minimize=False, unit="training examples", key="k")
    assert trace(best, "best so far")["y"] == [3.0, 4.0, 4.0]
    assert progress_figure([], meter, metric="f1", minimize=False, unit="x", key="k") is None


def test_of_thousands_of_trials_every_improvement_is_kept() -> None:
    ended = [Ended(number=n, at=sec(n), value=0.5 if n == 1501 else 1.0 + n) for n in range(3000)]
    found = progress_figure(ended, Meter([]), metric="loss", minimize=True, unit="x", key="k")
    assert 0.5 in trace(found, "completed trials")["y"]
    assert len(trace(found, "completed trials")["x"]) <= progress.MOST_POINTS + 2
    assert found is not None
    assert "3,000 completed trials are shown" in found.note


# -- attempts ------------------------------------------------------------------------------------------


def span(trial: int, start: float, end: float | None, state: str = "completed", **more: Any) -> AttemptSpan:
    given: dict[str, Any] = {"worker": "w-a", "sent": sec(start - 1), "resumed_at": 0, "ordinal": 1, **more}
    return AttemptSpan(
        trial=trial,
        device="cpu",
        state=state,
        reason=FOREIGN,
        started=sec(start),
        ended=None if end is None else sec(end),
        **given,
    )


def test_trials_that_run_at_once_have_slots_and_a_slot_says_who_left_it() -> None:
    placed = place([span(0, 0, 10), span(1, 1, 20), span(2, 12, 30), span(3, 5, 6, worker="w-b")], sec(40))
    assert [(one.span.trial, one.lane, one.after) for one in placed] == [
        (0, "worker 1, slot 1", None),
        (1, "worker 1, slot 2", None),
        (3, "worker 2, slot 1", None),
        (2, "worker 1, slot 1", 0),
    ]


def test_losses_and_resumes_are_marked_and_waits_are_shown() -> None:
    found = timeline_figure(
        [span(0, 0, 10, "lost"), span(0, 14, None, "running", ordinal=2, resumed_at=300)], sec(20)
    )
    drawn(found)
    assert trace(found, "worker lost")["x"] == ["2026-03-01T21:00:10.000"]
    assert trace(found, "resumed from a checkpoint")["x"] == ["2026-03-01T21:00:14.000"]
    assert trace(found, "running")["x"] == [6000]
    assert trace(found, "sent, not training yet")["x"] == [1000, 1000]
    said = trace(found, "lost")["hovertext"][0]
    assert "<b on" not in said
    assert "&lt;b on" in said
    assert found is not None
    assert "1 attempt was lost and 1 attempt resumed from a checkpoint." in found.note
    assert found.table is not None
    assert [row[0] for row in found.table.rows] == ["trial 0", "trial 0, attempt 2"]
    assert timeline_figure([], sec(0)) is None


def test_an_attempt_that_never_began_is_shown_as_sent() -> None:
    never = AttemptSpan(
        trial=0, ordinal=1, worker="w", device=None, state="lost", reason="", sent=sec(0), started=None,
        ended=sec(5), resumed_at=0,
    )  # fmt: skip
    found = timeline_figure([never], sec(9))
    drawn(found)
    assert trace(found, "sent, not training yet")["x"] == [5000]


def test_of_many_attempts_the_latest_are_shown() -> None:
    found = timeline_figure([span(n, 10 * n, 10 * n + 5) for n in range(1000)], sec(99_999))
    assert found is not None
    assert "400 of 1,000 attempts are shown: the latest." in found.note
    assert trace(found, "completed")["text"][-1] == "999"


# -- importance, front, range test, trend ----------------------------------------------------------------


def test_what_is_no_more_than_chance_is_hatched() -> None:
    parameters = [
        ParameterImportanceView(name="a", importance=0.7, above_chance=True, reason=None),
        ParameterImportanceView(name="b", importance=0.3, above_chance=False, reason=None),
        ParameterImportanceView(name="c", importance=None, above_chance=None, reason="one value"),
    ]
    found = importance.importance_figure(
        ImportanceView(parameters=parameters, trials=20, best_trials=5, sentence="")
    )
    drawn(found)
    assert trace(found, "more than chance")["text"] == ["70%"]
    assert trace(found, "no more than chance")["marker"]["pattern"]["shape"] == "/"
    nothing = ImportanceView(parameters=parameters[2:], trials=1, best_trials=0, sentence="")
    assert importance.importance_figure(nothing) is None


def test_each_cost_has_its_front() -> None:
    points = [
        ParetoPoint(
            trial_number=0, value=1.0, costs={"train_seconds": 9.0, "peak_memory_gb": 1.0}, params={}
        ),
        ParetoPoint(
            trial_number=1, value=2.0, costs={"train_seconds": 3.0, "peak_memory_gb": 2.0}, params={}
        ),
    ]
    costed = [front.Costed(number=n, value=1.0 + n, costs=(9.0 - n, 1.0)) for n in range(600)]
    found = front.front_figures(costed, points, "eval_loss")
    assert [figure.title for figure in found] == [
        "eval_loss against train_seconds",
        "eval_loss against peak_memory_gb",
    ]
    drawn(found[0])
    assert trace(found[0], "Pareto front")["x"] == [3.0, 9.0]
    assert "500 of 600 trials are shown" in found[0].note
    assert front.front_figures(costed, [], "eval_loss") == []


def range_test_view(**changes: Any) -> RangeTestView:
    points = [CurvePointView(learning_rate=10.0**-n, loss=n, smoothed=float(n)) for n in (6, 5, 4, 3, 2)]
    corner = CornerView(
        trial_number=0,
        values={"lora_r": 8},
        curve=points,
        steepest=1e-4,
        minimum=1e-2,
        divergence=None,
        note="",
    )
    given: dict[str, Any] = {
        "id": "0", "name": "t", "state": StudyState.COMPLETED, "reason": "", "owner": "", "created_at": AT,
        "started_at": AT, "ended_at": AT, "study": None, "dashboard_path": None, "definition": {},
        "corners": [corner], "allowed": None, "proposed": None, "bounds": BoundsView(min=1e-4, max=1e-3),
        "notes": [], **changes,
    }  # fmt: skip
    return RangeTestView(**given)


def test_the_bounds_of_a_range_test_are_shaded() -> None:
    found = range_test.range_test_figure(range_test_view())
    shape = drawn(found).layout.shapes[0]
    assert (shape.x0, shape.x1) == (1e-4, 1e-3)
    assert trace(found, "rank 8")["y"] == [6.0, 5.0, 4.0, 3.0, 2.0]
    assert range_test.range_test_figure(range_test_view(corners=[])) is None
    assert not drawn(range_test.range_test_figure(range_test_view(bounds=None))).layout.shapes


def sweep(day: int, value: float | None, *changed: str, state: str = "completed") -> Sweep:
    return Sweep(name=f"s-{day}", at=AT + timedelta(days=day), state=state, value=value, changed=changed)


def test_the_line_breaks_where_data_has_changed_and_skips_have_a_row() -> None:
    nights = [
        sweep(0, 3.0),
        sweep(1, None, state="failed"),
        sweep(2, 2.0),
        sweep(3, 5.0, "data.eval", "model"),
    ]
    found = trend_figure(nights, [Missed(at=AT, why=FOREIGN)], "loss")
    picture = drawn(found)
    assert trace(found, "best of a sweep")["y"] == [3.0, 2.0, None, 5.0]
    assert picture.layout.annotations[0].text == "data.eval and model changed"
    assert trace(found, "sweep without a result")["text"] == ["s-1: failed, without a result"]
    assert "<b" not in trace(found, "no sweep")["text"][0]
    assert found is not None
    assert found.note.startswith("The line breaks")
    assert trend_figure([sweep(0, None)], [], "loss") is None


def test_verdicts_are_words() -> None:
    assert style.words(Verdict.UNDER_TRAINED) == "under trained"
