"""Warnings about the base of a study. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from search_spaces.data_report import ModelReport
from search_spaces.wording import listed
from service.plans.schemas import PlanWarning, warning


def model_warnings(report: ModelReport) -> Iterator[PlanWarning]:
    """What the model's configuration shows."""
    if report.own_dropout:
        yield warning(
            "not_packed",
            f"{report.architecture} has dropout of its own, which it draws for a pass as a whole. Trials"
            " therefore train one after the other on a worker, not packed. Set model.dropout to off to pack"
            " them.",
            reason="dropout",
        )
        return
    unpacked = [adapter for adapter in report.adapters if adapter.layers_without_rows]
    if not unpacked:
        return
    layers = sorted({layer for adapter in unpacked for layer in adapter.layers_without_rows})
    which = "Trials" if len(unpacked) == len(report.adapters) else "Trials that adapt them"
    yield warning(
        "not_packed",
        f"{report.architecture} gives {listed(layers)} something that belongs to no row, such as the"
        f" embeddings of relative positions. {which} therefore train one after the other on a worker, not"
        " packed. Leave these layers out of target_modules to pack trials.",
        reason="layers",
        layers=", ".join(layers),
    )
