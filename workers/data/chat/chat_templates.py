"""A tokenizer's chat template: what it renders, what it marks, and the clock that it reads.

transformers gives every template a function `strftime_now`, which reads the clock of the process: the same
row would have other tokens after midnight, and no trial could be resumed then. Here the template gets a clock
that stands still: a macro of that name comes before the template's own text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from workers.errors import DataError, RowError, without_values

Message = Mapping[str, Any]
Span = tuple[int, int]
"""From this character of a rendering to before that one."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Names of a message's reasoning. Under the first, transformers hands a template the others' values too."""
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")
_REFUSALS = (TemplateError, ValueError, TypeError, KeyError)


@dataclass(frozen=True)
class Rendering:
    """How a study's conversations are rendered."""

    now: datetime | None = None
    """What `strftime_now` tells; None: a template that asks for it is refused."""
    unrendered: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a row of which the template leaves something out."""


PLAIN = Rendering()
"""Without a date, and nothing is lost."""


class ChatTemplate:
    """The chat template of a tokenizer, for one row's tools.

    Raises:
        DataError: there is none, or it renders the same row differently each time.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None, now: datetime | None
    ) -> None:
        try:
            self.text = str(tokenizer.get_chat_template(tools=tools))
        except ValueError as error:
            raise DataError(
                "The data holds conversations, but the base model's tokenizer has no chat template. Use an "
                "instruct model, set `tokenizer.chat_template` and save it with the model, or give the data "
                "as prompt_completion."
            ) from error
        if _CHANCE.search(self.text):
            raise DataError(
                "The tokenizer's chat template draws at random (`random` or `lipsum`), so a row would have "
                "other tokens each time it is read. Use a chat template that does not."
            )
        self.has_markers = bool(_GENERATION_MARKER.search(self.text))
        self._source = _with_clock(self.text, now)
        self._tokenizer = tokenizer
        self._tools = tools

    def reads(self, key: str) -> bool:
        """Whether the template's text has the name of a message's key in it."""
        keys = REASONING_KEYS if key in REASONING_KEYS else (key,)
        return any(re.search(rf"\b{re.escape(name)}\b", self.text) for name in keys)

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant is to write.

        Raises:
            RowError: the template refuses it.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=self._tools,
                    chat_template=self._source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except _REFUSALS as error:
            raise RowError(
                f"The tokenizer's chat template refuses this conversation: {without_values(str(error))}"
            ) from error

    def render_marked(self, messages: Sequence[Message], *, prompt: bool = False) -> tuple[str, list[Span]]:
        """The conversation as text, and what of it stands between `{% generation %}` markers, in order.

        With `prompt`, up to where the assistant is to write.

        Raises:
            RowError: the template refuses it.
        """
        if not self.has_markers:
            return self.render(messages, prompt=prompt), []
        present = [{key: value for key, value in m.items() if value is not None} for m in messages]
        try:
            texts, spans = render_jinja_template(
                conversations=[present],
                tools=self._tools,
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                add_generation_prompt=prompt,
                **self._tokenizer.special_tokens_map,
            )
        except _REFUSALS as error:
            raise RowError(
                f"The tokenizer's chat template refuses this conversation: {without_values(str(error))}"
            ) from error
        return str(texts[0]), [(start, end) for start, end in spans[0] if start < end]


def _refused(error: Exception) -> str:
    return f"The tokenizer's chat template refuses this conversation: {without_values(str(error))}"


@lru_cache(maxsize=8)
def _with_clock(template: str, now: datetime | None) -> str:
    """The template with a `strftime_now` of its own.

    What is handed to a template is plain data, never a function. So it is written as a macro, over the
    formats that stand in the template's text.

    Raises:
        DataError: it asks for the time, and none is given.
    """
    if "strftime_now" not in template:
        return template
    if now is None:
        raise DataError(
            "The tokenizer's chat template writes the date (`strftime_now`), and no date was given for it. "
            "Use a chat template that writes none."
        )
    try:
        tokens = list(Environment().lex(template))
    except TemplateError:
        return template  # rendering says what is wrong with it
    literals = (text for _, kind, text in tokens if kind == "string" and "%" in text)
    formats = [text[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape") for text in literals]
    dates = json.dumps({format_: now.strftime(format_) for format_ in formats})
    return (
        f"{{% set clock = {dates} %}}{{% macro strftime_now(format) %}}{{{{ clock[format] if format in clock"
        " else raise_exception('strftime_now is given a format that is not written out') }}{% endmacro %}"
        f"\n{template}"  # jinja drops the line's end after a block
    )
