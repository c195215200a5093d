"""The table of what trains on what: `docs/reference/support.md`, written by the families' parity tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from search_spaces.tasks import TASKS, Task
from tests.support.workers.families import FAMILIES
from tests.support.workers.family_parity import Outcome

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "support.md"
QUANTIZATIONS: tuple[str, ...] = ("none", "nf4", "int8")
Cell = tuple[str, Task, str]
"""Family, task and quantization."""

_INTRODUCTION = """# Families of models

What each family of models can be trained for. `python -m tests.scripts.support_table` writes this page. For
each cell it trains two trials of different rank, batch size and layers on a tiny model: together, each
alone, and as a script does with transformers, PEFT and torch. It does so without quantization, in `nf4` and
in `int8`. It ends with an error where losses, adapters or heads differ by more than 1e-4, or where a saved
adapter gives other answers on a base that transformers and PEFT load afresh.

- **packed**: trials share passes, and each gets the numbers that it gets alone.
- **alone**: trials train one after the other, with the same numbers as a script's. A layer of these models
  is given something that belongs to no row, the embeddings of relative positions, so the trials' outputs
  cannot be told apart. Trials whose `target_modules` leave such layers out are packed.
  A plan warns of it (`not_packed`).
- **refused**: not accepted, for the reasons below.

All of it is with `model.dropout: off`. With `dropout: keep`, the default, a model that drops numbers of its
own in training is trained **alone**, because it draws them for a pass as a whole. The column says whose
configurations ask for that by default; heads for tokens on most decoders do so, too.

Fused experts of a mixture-of-experts model are neither adapted nor quantized: its attention is.

To load an adapter with a head, give transformers the `config.json` in the adapter's folder, and where the
base is quantized, the adapter's `modules_to_save` as `llm_int8_skip_modules`: heads are not quantized.
"""


def cell_text(words: Mapping[str, str]) -> str:
    """One word where all quantizations are alike, else each with its own."""
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{quantization}: {word}" for quantization, word in words.items())


def committed_words() -> dict[Cell, str]:
    """What the page says of each cell."""
    names = {family.title: name for name, family in FAMILIES.items()}
    words: dict[Cell, str] = {}
    for line in PAGE.read_text().splitlines():
        title, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if title in names:
            for task, cell in zip(TASKS, cells[1:], strict=True):
                own = dict(re.findall(r"(\w+): (\w+)", cell))
                for quantization in QUANTIZATIONS:
                    words[names[title], task, quantization] = own.get(quantization, cell)
    return words


def committed_reasons() -> set[str]:
    """The reasons for refusals on the page."""
    return {line.removeprefix("- ") for line in PAGE.read_text().split("## Refused")[-1].splitlines()}


def page_of(find: Callable[[Cell], Outcome]) -> str:
    """The whole page; asks for one cell after the other."""
    rows, reasons = [], dict[str, None]()
    for name, family in FAMILIES.items():
        cells = []
        for task in TASKS:
            found = {quantization: find((name, task, quantization)) for quantization in QUANTIZATIONS}
            cells.append(cell_text({quantization: outcome.word for quantization, outcome in found.items()}))
            reasons |= dict.fromkeys(outcome.reason for outcome in found.values() if outcome.reason)
        drops = "yes" if family.dropout else "no"
        rows.append(f"| {' | '.join((family.title, drops, *cells))} |")
    header = f"| family | drops by default | {' | '.join(f'`{task}`' for task in TASKS)} |"
    table = "\n".join((header, "| --- " * (2 + len(TASKS)) + "|", *rows))
    refused = "\n".join(f"- {reason}" for reason in reasons)
    return f"{_INTRODUCTION}\n{table}\n\n## Refused\n\n{refused}\n"


def every_cell() -> Iterator[Cell]:
    """The full product."""
    return ((name, task, q) for name in FAMILIES for task in TASKS for q in QUANTIZATIONS)
