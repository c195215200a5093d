"""Tokenised rows, one class for each kind of task. T and U are tokens, C is classes.

All have the same four members, so that whatever orders, packs and counts examples need not know the task:

- `length`: padded tokens that the example takes in a pass by itself.
- `rows`: rows of the pass that it takes.
- `supervised_tokens`: terms that its loss is the mean of.
- `tensors()`: its contents, in the order of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from workers.data.tokenization import IGNORED


class _OneRow:
    """An example that is one row of T tokens."""

    input_ids: torch.Tensor

    @property
    def length(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def rows(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True)
class Example(_OneRow):
    """A row of a language model, with at least one supervised token.

    `labels` follow the Hugging Face convention: not shifted, `labels[i] == input_ids[i]` where supervised,
    else -100. `labels[0]` is always -100, because nothing predicts the first token; so counting labels
    that are not -100 counts the tokens that carry loss.
    """

    input_ids: torch.Tensor
    """int64, [T]."""
    labels: torch.Tensor
    """int64, [T]."""
    token_type_ids: torch.Tensor | None = None
    """int64, [T]: 0 in the prompt and 1 in the answer, of a pair that an encoder ranks. None: the tokenizer
    gives none."""

    @cached_property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return int((self.labels[1:] != IGNORED).sum())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tokens and labels, and the types where there are any."""
        return _given(self.input_ids, self.labels, self.token_type_ids)


@dataclass(frozen=True)
class LabelledExample(_OneRow):
    """A text, or a pair of texts, with one class, several classes or a score."""

    input_ids: torch.Tensor
    """int64, [T]."""
    token_type_ids: torch.Tensor | None
    """int64, [T]: 0 in the first text and 1 in the second. None: the tokenizer gives none."""
    label: torch.Tensor
    """The class: int64, []. Several classes: float32, [C], 1 for each that the row has, else 0. The score:
    float32, []."""

    @property
    def supervised_tokens(self) -> int:
        """One: the row's loss is one term, the mean over the classes where it has several."""
        return 1

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tokens, types where there are any, and the label."""
        return _given(self.input_ids, self.token_type_ids, self.label)


@dataclass(frozen=True)
class TokenLabelsExample(_OneRow):
    """A text with a class for some of its tokens, at least one."""

    input_ids: torch.Tensor
    """int64, [T]."""
    labels: torch.Tensor
    """int64, [T]: the class of the token itself (nothing is shifted), -100 where it has none."""

    @cached_property
    def supervised_tokens(self) -> int:
        """Tokens that have a class."""
        return int((self.labels != IGNORED).sum())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tokens and labels."""
        return self.input_ids, self.labels


@dataclass(frozen=True)
class Seq2SeqExample:
    """A text for the encoder and the text that the decoder is to write."""

    input_ids: torch.Tensor
    """int64, [T]: the source."""
    labels: torch.Tensor
    """int64, [U]: the target with its end token, all supervised. The decoder is given them shifted right."""

    @property
    def length(self) -> int:
        """T + U."""
        return len(self.input_ids) + len(self.labels)

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @cached_property
    def supervised_tokens(self) -> int:
        """Tokens of the target."""
        return int((self.labels != IGNORED).sum())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Source and target."""
        return self.input_ids, self.labels


@dataclass(frozen=True)
class PairExample:
    """Two answers to one prompt, of which one is better. Each is a row of its own, with the prompt in it."""

    chosen: Example
    rejected: Example
    reference: tuple[float, float] | None = None
    """Log-probabilities of the chosen and the rejected answer under the base without an adapter, once they
    have been computed. Not part of the example's contents."""

    @property
    def length(self) -> int:
        """Tokens of two rows that are padded to the longer one."""
        return 2 * max(self.chosen.length, self.rejected.length)

    @property
    def rows(self) -> int:
        """Two."""
        return 2

    @property
    def supervised_tokens(self) -> int:
        """One: the pair's loss is one term."""
        return 1

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the chosen row has, then what the rejected has."""
        return (*self.chosen.tensors(), *self.rejected.tensors())


AnyExample = Example | LabelledExample | TokenLabelsExample | Seq2SeqExample | PairExample


def real_tokens(example: AnyExample) -> int:
    """Tokens that an example takes in a pass without padding."""
    return sum(row_lengths(example)) if isinstance(example, PairExample) else example.length


def row_lengths(example: AnyExample) -> list[int]:
    """Tokens of each row of an example that have embeddings; for an encoder-decoder, those of the source."""
    if isinstance(example, PairExample):
        return [example.chosen.length, example.rejected.length]
    return [len(example.input_ids)]


def _given(*tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)
