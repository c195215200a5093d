"""What is known of a study's data and base model before anything trains.

The service asks for it and the workers' package makes it, in a process of its own; neither imports the
other, so the words that cross the line between them are here. Everything is read from files: no weight is
loaded.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from search_spaces.definition import DataSpec, ModelSpec
from search_spaces.recipe import Optimizer, Quantization, TargetModules

ComputeDtype = Literal["float32", "bfloat16", "float16"]
ProblemKind = Literal["model", "data", "recipe", "host"]
TurnsFoundBy = Literal["prefixes", "both", "markers", "markers_unverified", "prefixes_despite_markers"]
"""How the assistant's turns were found in a conversation: by rendering its beginnings (prefixes), by the chat
template's `{% generation %}` markers, or by both, which agreed. `markers`: they leave out a part of the
turns; `markers_unverified`: the beginnings cannot tell; `prefixes_despite_markers`: the markers go beyond the
turns, and were not followed."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterShape(_Part):
    """What the memory of a trial depends on, beside the base and its activations."""

    lora_r: int
    target_modules: TargetModules
    optimizer: Optimizer
    sgd_momentum: float = 0.9


class ReportRequest(_Part):
    """What a report is wanted of."""

    model: ModelSpec
    data: DataSpec
    max_lengths: tuple[int, ...]
    """Lengths, in tokens, to which training examples are cut; evaluation goes by the data's own."""
    quantizations: tuple[Quantization, ...]
    compute_dtypes: tuple[ComputeDtype, ...]
    adapters: tuple[AdapterShape, ...]
    max_rows: int
    """Rows of each data set that are tokenised; the ones after them are only counted."""


class Count(_Part):
    """How often a value occurs."""

    value: str
    rows: int
    share: float = Field(description="Of the rows that were looked at")


class Balance(_Part):
    """How rows are spread over the values of a column."""

    column: str
    distinct: int
    most_frequent: tuple[Count, ...] = Field(description="The most frequent values, ten at most")


class CutRows(_Part):
    """What is left of the rows at one length."""

    max_length: int
    usable_rows: int = Field(description="With at least one supervised token left")
    truncated_rows: int = Field(description="Of the usable ones: longer than max_length, so cut")
    cut_away_rows: int = Field(description="Not usable, because all that is supervised was cut away")
    tokens: int = Field(description="Of the usable rows, after the cut")
    supervised_tokens: int = Field(description="Likewise, those that carry loss")


class SplitReport(_Part):
    """The train or the eval data."""

    source: str
    rows: int | None = Field(
        description="That a trial reads; null when there are more than were counted (see rows_counted)"
    )
    rows_counted: int
    rows_read: int = Field(description="Tokenised: everything below is about these, the first ones")
    faulty_rows: int = Field(description="Not what the format needs; every trial would fail at the first one")
    unsupervised_rows: int = Field(description="Without a supervised token to begin with: left out")
    median_tokens: int | None = Field(description="Before any cut; null without a row that could be read")
    p95_tokens: int | None = Field(description="95 % of the rows have at most so many, before any cut")
    longest_tokens: int | None = Field(description="Before any cut")
    by_length: tuple[CutRows, ...] = Field(description="One for each length that recipes cut rows to")
    duplicate_rows: int = Field(description="Rows with the tokens and the mask of an earlier one")
    turns_found_by: tuple[Count, ...] = Field(
        default=(),
        description="How the assistant's turns were found, in conversations: prefixes (by rendering their"
        " beginnings), both (the template's markers agree), markers (they leave out a part of the turns),"
        " markers_unverified (the beginnings cannot tell), prefixes_despite_markers (the markers go beyond"
        " the turns, and were not followed)",
    )
    unrendered: tuple[Count, ...] = Field(
        default=(),
        description="What the chat template left out, cut or rewrote, where data.unrendered is ignore:"
        " assistant.reasoning_content, system.content, tools",
    )
    unread_columns: tuple[Count, ...] = Field(
        default=(), description="Columns that are filled in and that nothing reads, 50 at most"
    )
    unread_message_keys: tuple[Count, ...] = Field(
        default=(),
        description="Keys of messages that are filled in and that nothing reads: assistant.name; 50 at most",
    )
    labels: Balance | None = Field(
        description="Of the supervised texts, where they are like labels: at most 50 distinct ones, each"
        " found twice on average"
    )
    tasks: Balance | None = Field(
        description="Of the first column that is called task, category, source or label, is not part of the"
        " format and has at most 50 distinct values"
    )

    @property
    def sampled(self) -> bool:
        """Whether there are rows that were not tokenised."""
        return self.rows != self.rows_read


class Segment(_Part):
    """A run of tokens that all carry loss, or none of which does."""

    text: str
    supervised: bool


class DecodedExample(_Part):
    """A training example as the model meets it."""

    place: str
    tokens: int
    segments: tuple[Segment, ...]


class DataReport(_Part):
    """Of both data sets; null for one that could not be read at all."""

    format: str | None
    train: SplitReport | None
    eval: SplitReport | None
    overlap_rows: int | None = Field(
        description="Eval rows whose text is also a train row's, but for case and white space"
    )
    examples: tuple[DecodedExample, ...] = Field(description="The first two training examples, decoded")


class BaseBytes(_Part):
    """The memory of the base's weights."""

    quantization: Quantization
    compute_dtype: ComputeDtype = Field(description="Of what is not quantized")
    bytes: int


class AdapterBytes(_Part):
    """The memory of one trial's adapter with its gradient and optimizer state."""

    lora_r: int
    target_modules: TargetModules
    optimizer: Optimizer
    trainable_parameters: int
    bytes: int


class ModelReport(_Part):
    """The base, from its configuration."""

    architecture: str
    parameters: int
    quantizable_parameters: int = Field(description="In the linear layers, the output head left out")
    max_positions: int | None
    bases: tuple[BaseBytes, ...]
    adapters: tuple[AdapterBytes, ...]


class ReportProblem(_Part):
    """Something that trials would fail at, in the words they would fail with."""

    about: ProblemKind = Field(
        description="Of model or data, every trial fails; of recipe, those with that recipe; of host, the"
        " machine that made the report could not get something from the hub, and workers may"
    )
    message: str


class Report(_Part):
    """All of it. What a problem made impossible is null."""

    model: ModelReport | None
    data: DataReport | None
    problems: tuple[ReportProblem, ...]
