"""What is known about a study's data and base model before anything trains.

The service requests a report and the package `workers` makes it, in a process of its own. Neither imports the
other, so the models that both use are here. Everything is read from files; no weight is loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from search_spaces.definition import DataSpec, GenerateSpec, ModelSpec
from search_spaces.recipe import ClassWeights, Optimizer, Quantization, TargetModules
from search_spaces.tasks import Task
from search_spaces.wording import SENTENCE_CHARACTERS, shortened

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


class LoadingLimits(_Part):
    """What whoever reads a study's files is allowed."""

    data_roots: tuple[str, ...] | None = None
    """Folders that local files must lie in when they are opened; None: anywhere."""
    memory_gib: float | None = None
    """GiB of memory that reading and tokenising may take; None: half of the machine's."""
    cache_dir: str | None = None
    """Folder of a worker's own machine for what was computed of a base and data and can be computed again;
    None: nothing is kept."""
    plugins: tuple[str, ...] = ()
    """Modules that a study's own metrics and losses may be from."""


class ReportRequest(_Part):
    """What a report is wanted of."""

    model: ModelSpec
    task: Task = "causal_lm"
    data: DataSpec
    max_lengths: tuple[int, ...]
    """Lengths, in tokens, to which training examples are cut; evaluation uses `data.max_length`."""
    quantizations: tuple[Quantization, ...]
    compute_dtypes: tuple[ComputeDtype, ...]
    adapters: tuple[AdapterShape, ...]
    objective: str = "eval_loss"
    """The metric that trials are compared by."""
    constrained: tuple[str, ...] = ()
    """Metrics that have a constraint."""
    generate: GenerateSpec | None = None
    """How text is generated; None: as `GenerateSpec` says by default, where a metric needs it."""
    class_weights: ClassWeights = "none"
    """Of all recipes: a mapping cannot be searched."""
    max_rows: int
    """Rows of each data set that are tokenised."""
    max_counted: int
    """Rows after them that are counted."""
    limits: LoadingLimits = LoadingLimits()

    @property
    def needed(self) -> tuple[str, ...]:
        """Metrics without which a trial fails."""
        return (self.objective, *self.constrained)


class Count(_Part):
    """How often a value occurs."""

    value: Annotated[str, AfterValidator(shortened)]
    rows: int
    share: float = Field(description="As a share of the rows that were read")


class Balance(_Part):
    """How rows are distributed over the values of a column."""

    column: Annotated[str, AfterValidator(shortened)]
    distinct: int
    most_frequent: tuple[Count, ...] = Field(description="The most frequent values, at most ten")
    rarest: Count | None = Field(
        default=None, description="The rarest label of the train data that occurs; null: no labels of a task"
    )


class Scores(_Part):
    """How the scores of a regression are distributed."""

    lowest: float
    mean: float
    highest: float
    standard_deviation: float


class Lengths(_Part):
    """Tokens of one row's target."""

    median: int
    p95: int
    longest: int


class Answers(_Part):
    """What `evaluation.generate.answer_pattern` finds in the references of the eval data."""

    references: int = Field(description="Those that were searched: of the rows that were read")
    without_answer: int
    first_without: str | None = Field(description="The place of the first one without an answer")


class Baseline(_Part):
    """What one answer to every row of the eval data reaches, the best one by the train data alone."""

    answer: Annotated[str, AfterValidator(shortened)] = Field(
        description="The most frequent label, or the mean score"
    )
    metrics: dict[str, float]


class CutRows(_Part):
    """What is left of the rows at one length."""

    max_length: int
    usable_rows: int = Field(description="Rows with at least one supervised token after truncation")
    truncated_rows: int = Field(description="Usable rows that were longer than max_length and were cut")
    cut_away_rows: int = Field(description="Rows whose supervised tokens were all cut away, so not usable")
    tokens: int = Field(description="Tokens of the usable rows, after truncation")
    supervised_tokens: int = Field(description="How many of these tokens carry loss")


class SplitReport(_Part):
    """The train or the eval data."""

    source: str
    rows: int | None = Field(
        description="Rows that a trial reads; null if there are more than were counted (see rows_counted)"
    )
    rows_counted: int
    rows_read: int = Field(description="The first rows, which were tokenised and on which the rest is based")
    faulty_rows: int = Field(description="Rows that do not fit the format; every trial fails at the first")
    unsupervised_rows: int = Field(description="Rows left out for having no supervised token, even uncut")
    median_tokens: int | None = Field(description="Tokens of the median row before truncation; null: no rows")
    p95_tokens: int | None = Field(description="95 % of the rows have at most this many tokens, uncut")
    longest_tokens: int | None = Field(description="Tokens of the longest row before truncation")
    by_length: tuple[CutRows, ...] = Field(description="One entry for each length to which recipes cut rows")
    duplicate_rows: int = Field(description="Rows with the same tokens and mask as an earlier row")
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
        description="Distribution of the task's labels; of a language model that of the supervised texts, if"
        " they look like labels: at most 50 distinct texts, each of which occurs twice on average"
    )
    tasks: Balance | None = Field(
        description="Distribution of the first column that is called task, category, source or label, is not"
        " part of the format and has at most 50 distinct values"
    )
    scores: Scores | None = Field(default=None, description="Of a regression")
    targets: Lengths | None = Field(
        default=None, description="Tokens that a language model is to write for a row, uncut"
    )
    equal_pairs: int | None = Field(
        default=None, description="Pairs whose chosen answer is also the rejected one; null: no pairs"
    )
    answers: Answers | None = Field(
        default=None, description="Of the eval data, where the study measures answer_match"
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
    """A training example as the model sees it."""

    place: str
    tokens: int
    segments: tuple[Segment, ...]


class DataReport(_Part):
    """What was found in both data sets; null for a data set that could not be read at all."""

    format: str | None = Field(description="The format of a causal_lm's rows; of another task its name")
    train: SplitReport | None
    eval: SplitReport | None
    overlap_rows: int | None = Field(
        description="Eval rows whose text also occurs in the train data, ignoring case and white space"
    )
    examples: tuple[DecodedExample, ...] = Field(description="The first two training examples, decoded")
    baseline: Baseline | None = Field(
        default=None, description="Of tasks with labels or scores: what every trial should beat"
    )


class BaseBytes(_Part):
    """The memory of the base's weights."""

    quantization: Quantization
    compute_dtype: ComputeDtype = Field(description="The dtype of the weights that are not quantized")
    bytes: int
    decoded_bytes: int = Field(
        0, description="What the quantized weights take once more where workers keep them decoded"
    )


class AdapterBytes(_Part):
    """The memory of one trial's adapter with its gradient and optimizer state."""

    lora_r: int
    target_modules: TargetModules
    optimizer: Optimizer
    trainable_parameters: int
    bytes: int
    layers_without_rows: tuple[str, ...] = Field(
        default=(),
        description="Adapted layers that are given something that belongs to no row, so that trials with them"
        " train one after the other",
    )


class ModelReport(_Part):
    """The base, from its configuration."""

    architecture: str
    own_dropout: bool = Field(
        default=False,
        description="Whether it draws numbers of its own in training, so that trials train one after the"
        " other",
    )
    parameters: int
    quantizable_parameters: int = Field(description="Parameters of the linear layers without the output head")
    max_positions: int | None
    bases: tuple[BaseBytes, ...]
    adapters: tuple[AdapterBytes, ...]


class ReportProblem(_Part):
    """A fault that would make trials fail, in the words with which they would fail."""

    about: ProblemKind = Field(
        description="model or data: every trial would fail; recipe: trials with that recipe would fail, which"
        " may be all (see every_trial); host: the machine that made the report could not fetch something from"
        " the hub, but workers may be able to"
    )
    message: Annotated[str, AfterValidator(lambda text: shortened(text, SENTENCE_CHARACTERS))]
    path: str = Field(default="", description="The key of the definition that it is about, with dots")
    every_trial: bool = Field(
        default=False, description="Whether every trial would fail at it, whatever its recipe"
    )
    rows: int | None = Field(
        default=None,
        description="Rows with this fault, of those that were read; the message names the first. null: it is"
        " not about single rows",
    )


class FilesReport(_Part):
    """What was found in a study's model and data files. What a problem made impossible is null."""

    model: ModelReport | None
    data: DataReport | None
    problems: tuple[ReportProblem, ...]
