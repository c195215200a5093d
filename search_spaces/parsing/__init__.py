"""From a submitted document to a definition, or to everything that is wrong with it.

`document` reads the sections, `presets` works out the space and the recipe, and the `*_rules` modules hold
what one section demands of another, each rule on whatever was readable (`draft`).
"""

from search_spaces.parsing.document import parse
from search_spaces.parsing.search_rules import MAX_GRID_POINTS
from search_spaces.parsing.study_rules import MIN_GPU_SHARE

__all__ = ["MAX_GRID_POINTS", "MIN_GPU_SHARE", "parse"]
