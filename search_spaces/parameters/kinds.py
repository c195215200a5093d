"""What may vary: Float | Int | Choice, each frozen, finite, and with a condition where it has one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int

Parameter = Annotated[Float | Int | Choice, Field(discriminator="type")]
