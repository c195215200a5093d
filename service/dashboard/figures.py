"""Figures of the service on the dashboard's pages."""

from __future__ import annotations

from typing import Any

from service.optuna_store.storage import Storage
from service.optuna_store.studies import load_study


def save_figure(storage: Storage, study: str, figure: Any, name: str) -> None:
    """Put a `plotly.graph_objects.Figure` on a study's page, in place of an earlier one of this name.

    It is stored with the Optuna study itself, in system attributes; only the coordinator writes those.

    Args:
        storage: where the Optuna study is.
        study: its name; it must exist.
        figure: the figure.
        name: letters, digits, `-`, `_` and `.`.
    """
    import optuna_dashboard  # takes scikit-learn and pandas along, and only a range test's end needs it

    loaded = load_study(storage, study)
    optuna_dashboard.save_plotly_graph_object(loaded, figure, graph_object_id=name)
