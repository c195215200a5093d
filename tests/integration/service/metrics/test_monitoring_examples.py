"""The Grafana dashboard and the alert rules of the examples ask for metrics and labels that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from service.metrics.exposition import families
from service.metrics.measurements import Measurements
from service.metrics.requests import RequestTimes
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "examples" / "monitoring"
DASHBOARD = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}

EXPRESSIONS = {
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
    **{rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]},
}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Every time series of ours -> its labels."""
    nothing = Measurements(
        studies_by_state={},
        oldest_queued_seconds=0,
        coordinators=0,
        coordinators_in_trouble=0,
        devices_put_aside=0,
        studies=(),
        studies_left_out=0,
        schedules=(),
    )
    found = {
        family.name + suffix: set(family._labelnames)  # type: ignore[attr-defined]
        for family in families(nothing)
        for suffix in SUFFIXES[family.type]
    }
    seconds = RequestTimes().seconds
    for suffix in SUFFIXES["histogram"]:
        found[seconds._name + suffix] = {*seconds._labelnames, *(["le"] if suffix == "_bucket" else [])}
    return found


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, name, None)
        if inner is not None:
            yield from selectors(inner)
    for argument in getattr(node, "args", None) or ():
        yield from selectors(argument)


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_a_query_can_be_parsed_and_asks_for_what_there_is(title: str, known: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[title]
    asked = list(selectors(promql_parser.parse(expression)))
    assert asked
    labels: set[str] = set()
    for selector in asked:
        assert selector.name in known
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name]
        labels |= known[selector.name]
    for names in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {name.strip() for name in names.split(",")} <= labels


def test_every_metric_of_the_service_is_shown_or_watched(known: dict[str, set[str]]) -> None:
    everything = " ".join(EXPRESSIONS.values())
    unused = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known if name not in everything}
    unused -= {re.sub("_(total|bucket|sum|count)$", "", name) for name in known if name in everything}
    assert unused == {
        "nightsweep_worker_seconds",  # where there is no GPU
        "nightsweep_studies_without_series",
        "nightsweep_schedule_enabled",
        "nightsweep_schedule_last_firing_timestamp_seconds",
    }


def test_panels_do_not_lie_on_each_other_and_fit_in() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not taken & cells, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
