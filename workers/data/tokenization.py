"""From pieces of text to token ids and labels, with the tokens a person meets again at inference.

Whatever comes before the supervised part is tokenised as it will be at inference, where it stands alone:
a token never spans the boundary. Special tokens that a tokenizer puts before every text (a BOS) come once, at
the very start; those it puts after every text are left out, because the text goes on. A BOS or an end token
that is written in the text already is not doubled.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import TurnsFoundBy
from workers.data.chat.chat_templates import Span
from workers.errors import ModelError, RowError

IGNORED = -100
"""The label of a token that carries no loss (the value PyTorch and transformers ignore)."""


@dataclass(frozen=True)
class EncodedRow:
    """One row as tokens. `labels[i]` is `input_ids[i]` where supervised, else -100; not shifted."""

    input_ids: list[int]
    labels: list[int]
    found_by: TurnsFoundBy | None = None
    """How the assistant's turns were found, of a conversation that has any."""
    unrendered: tuple[str, ...] = ()
    """What of the row is not in its text, where that is allowed: `assistant.reasoning_content`, `tools`."""


@dataclass(frozen=True)
class TextSegment:
    """A piece of text that is supervised as a whole or not at all."""

    text: str
    supervised: bool


def encode_segments(
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[TextSegment],
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> EncodedRow:
    """Tokenises consecutive pieces of one text.

    The whole text is tokenised at once when that leaves the tokens before every boundary as they are
    alone (so that a sentencepiece tokenizer does not begin each piece with a space of its own); else every
    piece is tokenised by itself and the pieces are joined.

    Args:
        tokenizer: adds no special tokens here, but recognises those written in the text.
        segments: in order; together they are the text.
        prefix: token ids put before everything, never supervised; left out where the text begins with them.
        suffix: token ids put after everything, supervised; left out where the text ends with them.
    """
    pieces = _split_jointly(tokenizer, segments)
    if pieces is None:
        pieces = [_ids(tokenizer, segment.text) for segment in segments]
    input_ids: list[int] = []
    labels: list[int] = []
    for segment, ids in zip(segments, pieces, strict=True):
        input_ids += ids
        labels += ids if segment.supervised else [IGNORED] * len(ids)
    if prefix and input_ids[: len(prefix)] == list(prefix):
        labels[: len(prefix)] = [IGNORED] * len(prefix)
    else:
        input_ids, labels = [*prefix, *input_ids], [IGNORED] * len(prefix) + labels
    if suffix and input_ids[-len(suffix) :] == list(suffix):
        suffix = ()
    return EncodedRow([*input_ids, *suffix], [*labels, *suffix])


def encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, edges: Sequence[int]
) -> tuple[list[int], list[Span]]:
    """The tokens of a text and where each is in it. None spans an edge, as none does at inference."""
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    input_ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    starts = [start for start, _ in offsets]
    spanned = [edge for edge in edges if (i := bisect_left(starts, edge)) and offsets[i - 1][1] > edge]
    if not spanned:
        return input_ids, offsets
    input_ids, offsets = [], []
    for start, end in pairwise([0, *spanned, len(text)]):
        ids, inner = encode_with_offsets(tokenizer, text[start:end], [])
        input_ids += ids
        offsets += [(start + one, start + other) for one, other in inner]
    return input_ids, offsets


def label_spans(
    tokenizer: PreTrainedTokenizerBase,
    input_ids: list[int],
    offsets: list[Span],
    marks: Sequence[Span],
    turns: Sequence[Span],
) -> EncodedRow:
    """Labels the tokens in `marks`, and the special token that ends each one, within the turns."""

    def ends_turn(token: int) -> bool:
        return token != tokenizer.bos_token_id and is_special(tokenizer, token)

    labels = [IGNORED] * len(input_ids)
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    for number, mark in enumerate(marks, start=1):
        turn = next(turn for turn in turns if overlap(mark, turn) is not None)
        closes = number == len(marks) or overlap(marks[number], turn) is None
        first, last = bisect_right(ends, mark[0]), bisect_left(starts, mark[1]) - 1
        if first > last:
            continue
        if not ends_turn(input_ids[last]):
            # Markers that stop short of the end-of-turn token would leave a model that never stops.
            following = last + 1
            while (
                closes and following < len(input_ids) and not tokenizer.decode([input_ids[following]]).strip()
            ):
                following += 1
            if (
                following < len(input_ids)
                and overlap(offsets[following], turn) is not None
                and ends_turn(input_ids[following])
            ):
                last = following
        labels[first : last + 1] = input_ids[first : last + 1]
    return without_trailing_space(tokenizer, EncodedRow(input_ids, labels))


def without_trailing_space(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> EncodedRow:
    """Unsupervises the white space that a template writes after an end-of-turn token.

    Generation has stopped by then, so the model never writes it. White space after a special token *within*
    a turn stays supervised.
    """
    labels = list(row.labels)
    blanks: list[int] | None = []  # white space at the end of a turn; None while in the turn itself
    for i in reversed(range(len(labels))):
        if labels[i] == IGNORED:
            blanks = []
        elif blanks is None:
            continue
        elif not tokenizer.decode([labels[i]]).strip():
            blanks.append(i)
        else:
            if is_special(tokenizer, labels[i]):
                for blank in blanks:
                    labels[blank] = IGNORED
            blanks = None
    return EncodedRow(row.input_ids, labels)


def overlap(one: Span, other: Span) -> Span | None:
    """What two spans share; None: nothing."""
    start, end = max(one[0], other[0]), min(one[1], other[1])
    return (start, end) if start < end else None


def check_text(text: str, what: str) -> str:
    r"""A text that can be tokenised, as it is.

    Raises:
        RowError: it holds half of a surrogate pair. JSON can escape one (`\ud83d`), UTF-8 cannot encode it,
            and tokenizers say only that it is not a text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"{what} holds {error.object[error.start]!a}, half of a surrogate pair, which is not a "
            "character. Write the whole character, or remove it."
        ) from error
    return text


def is_special(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is a control token, not text.

    Asked of decoding, because `all_special_ids` lacks the special tokens that have no role of their own,
    such as the end-of-turn token of Phi-3.
    """
    return bool(tokenizer.decode([token])) and not tokenizer.decode([token], skip_special_tokens=True)


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before every text: usually none, or a BOS."""
    text = "a"
    plain = _ids(tokenizer, text)
    full = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token a model must learn to end with.

    Raises:
        ModelError: the tokenizer has none, so generation with the adapter would never stop.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no end-of-sequence token, so an adapter could not learn to stop. Set "
            "`tokenizer.eos_token` and save the tokenizer with its model."
        )
    return int(tokenizer.eos_token_id)


def _split_jointly(
    tokenizer: PreTrainedTokenizerBase, segments: Sequence[TextSegment]
) -> list[list[int]] | None:
    """The pieces' tokens within the whole text; None where a boundary would change them."""
    whole = _ids(tokenizer, "".join(segment.text for segment in segments))
    pieces: list[list[int]] = []
    text, start = "", 0
    for segment in segments[:-1]:
        text += segment.text
        before = _ids(tokenizer, text)
        if whole[: len(before)] != before:
            return None
        pieces.append(whole[start : len(before)])
        start = len(before)
    return [*pieces, whole[start:]]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Not verbose: a text longer than the model's positions is cut later, and counted, not warned about.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
