"""What a study may call metrics and losses of its own, and how it says where they are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from search_spaces.faults import one_error

NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
NAME_FORM = "up to 64 letters, digits and underscores, not beginning with a digit"
FUNCTION = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
METRIC_FORM = "a module and a function in it, such as my_metrics:profit"
LOSS_FORM = "a module and a function in it, such as my_losses:under_predicting"

FunctionName = Annotated[str, Field(pattern=NAME), one_error(NAME_FORM)]
MetricPath = Annotated[str, Field(pattern=FUNCTION), one_error(METRIC_FORM)]
LossPath = Annotated[str, Field(pattern=FUNCTION), one_error(LOSS_FORM)]
