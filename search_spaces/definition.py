"""The validated document a user submits: what to train, what to search, when to stop.

`search_spaces.parsing.document.parse_definition` is the only way user input becomes a definition. The models
here check their own fields; what one section demands of another is checked there, once, at submission. So a
definition accepted by an older version still loads (`StudyDefinition.model_validate(stored)`) when a later
one has become stricter across sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from search_spaces.errors import Fault
from search_spaces.faults import SET_BY_SERVICE, one_error, problems
from search_spaces.parameters.choices import Choice
from search_spaces.pruning.specs import NoPruning, Pruning
from search_spaces.recipe import Quantization, Recipe
from search_spaces.space.search_space import SearchSpace
from search_spaces.tasks import DIRECTIONS, METRICS, TASKS, Direction, Task
from search_spaces.values.columns import read_columns
from search_spaces.values.defaults import unsaid_if
from search_spaces.values.numbers import Duration, Real, Seed, Whole, parse_duration
from search_spaces.values.own_functions import FunctionName, LossPath, MetricPath
from search_spaces.values.time_of_day import TimeOfDay

DataFormat = Literal["auto", "text", "prompt_completion", "messages", "alpaca"]
Algorithm = Literal["grid", "random", "tpe", "qmc", "gp", "cmaes"]
Cost = Literal["train_seconds", "peak_memory_gb", "trainable_parameters"]
"""What a trial costs: measured once, at its end, and always better when smaller. A GB is 10^9 bytes."""
KeepDecoded = Literal["auto", "always", "never"]
StudyName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
    one_error("up to 128 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"),
]
Text = Annotated[str, Field(min_length=1)]

DATA_FIELDS: tuple[str, ...] = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.fields))
"""What the tasks call the parts of a row, and so what `columns` can rename."""
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
COSTS: tuple[Cost, ...] = get_args(Cost)
MEASURES: tuple[str, ...] = (*METRICS, *COSTS)
"""All that is measured of a trial, and may be constrained."""
MAX_TRIALS = 100_000


class Section(BaseModel):
    """Base of the parts of a definition."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Section):
    """The base model and how it is quantized."""

    id: Text
    """A hub id (`Qwen/Qwen2.5-0.5B-Instruct`) or a local folder."""
    revision: Text | None = None
    quantization: Quantization = "nf4"
    double_quantization: StrictBool = True
    """Quantize the quantization constants too: 0.37 bits less per parameter (QLoRA, section 3)."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the GPU has it, float32 on CPU."""
    dropout: Annotated[Literal["keep", "off"], unsaid_if("keep")] = "keep"
    """The base's own dropout in training; off: none, whatever its configuration says."""


class HubData(Section):
    """A data set on the Hugging Face hub."""

    hub: Text
    config: Text | None = None
    split: Text
    revision: Text | None = None


def _data_kind(value: Any) -> str:
    return "hub" if isinstance(value, (Mapping, HubData)) else "file"


DataSource = Annotated[
    Annotated[Text, Tag("file")] | Annotated[HubData, Tag("hub")], Discriminator(_data_kind)
]


class DataSpec(Section):
    """What to train and evaluate on."""

    train: DataSource
    """A file (.jsonl, .json, .csv, .parquet) or a hub data set."""
    eval: DataSource
    format: DataFormat = "auto"
    header: Annotated[Literal["first_row", "none"], unsaid_if("first_row")] = "first_row"
    """Where a CSV file has the names of its columns. none: nowhere."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Renames: the task's field -> the column that holds it, for example {prompt: question}. Without a header
    a column is called by its position, counted from 0, as text: {score: "4"}."""
    max_length: Annotated[Whole, Field(ge=8)] = 512
    """Tokens; longer examples are truncated and counted."""
    unrendered: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a row of which the chat template leaves out, cuts or rewrites something. ignore: it is
    trained on as it is rendered, and counted."""
    max_train_examples: Annotated[Whole, Field(ge=1)] | None = None
    max_eval_examples: Annotated[Whole, Field(ge=1)] | None = None

    @field_validator("columns", mode="before")
    @classmethod
    def _read_positions(cls, raw: Any, info: ValidationInfo) -> Any:
        header = info.data.get("header")
        return raw if header is None else read_columns(raw, positions=header == "none")


class RangeTestSpec(Section):
    """A learning-rate range test: the rate rises exponentially, step by step, until the loss diverges.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, section 3.3.
    """

    min: Annotated[Real, Field(gt=0)] = 1e-7
    """The first step's rate."""
    max: Annotated[Real, Field(gt=0)] = 1.0
    """The last step's rate."""
    steps: Annotated[Whole, Field(ge=20, le=10_000)] = 100
    """Optimizer steps of the sweep."""
    widen: StrictBool = False
    """Whether the bounds found may go beyond those that the space gives the learning rate."""
    within: Annotated[
        tuple[Annotated[Real, Field(gt=0)], Annotated[Real, Field(gt=0)]] | None, SET_BY_SERVICE
    ] = None
    """Bounds of the learning rate in the study's space, because the range test's own space has no learning
    rate. Set by the service."""

    @model_validator(mode="after")
    def _check(self) -> RangeTestSpec:
        if self.max <= self.min:
            message = f"must be more than min ({self.min:g})"
            raise problems(
                Fault(path="max", value=self.max, message=message, allowed=f"more than {self.min:g}")
            )
        return self


class WarmStartSpec(Section):
    """What the search reuses from an earlier study."""

    from_: Annotated[Text, Field(alias="from")]
    """A study's name or id, or a schedule's name, which stands for its latest completed sweep."""
    top_k: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    """How many of its best completed trials. None: 5 to enqueue, all as a prior (a sampler that sees only
    good trials does not learn what to avoid)."""
    as_: Annotated[Literal["enqueue", "prior"], Field(alias="as")] = "enqueue"
    """enqueue: their recipes are evaluated first. prior: their results are given to the sampler."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_by_alias=True, serialize_by_alias=True
    )


class RepeatsSpec(Section):
    """Runs of the best recipes with other seeds, after the search, to see whether the winner is real."""

    top_k: Annotated[Whole, Field(ge=1, le=100)] = 3
    """How many of the best recipes."""
    seeds: Annotated[Whole, Field(ge=1, le=100)] = 3
    """Further runs of each, with seeds that the search did not use."""


class Bound(Section):
    """A constraint on one measured value: at least one end."""

    min: Real | None = None
    max: Real | None = None

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.min is None and self.max is None:
            message = "has no bound; give min, max or both"
            raise problems(Fault(path="", value={}, message=message, allowed="{min: ...}, {max: ...}"))
        if self.min is not None and self.max is not None and self.min > self.max:
            message = f"is above max ({self.max:g}), so no trial can meet both"
            allowed = f"at most {self.max:g}"
            raise problems(Fault(path="min", value=self.min, message=message, allowed=allowed))
        return self


class SearchSpec(Section):
    """What to search and how."""

    algorithm: Algorithm = "tpe"
    trials: Annotated[Whole, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Exactly this many, or one for each configuration if the space has fewer. Optional for a grid, which
    then has one trial per point."""
    seed: Seed = 0
    learning_rate_range_test: RangeTestSpec | None = None
    """A range test before the first trial, which narrows the learning rate's range. `true`: the defaults."""
    preset: str | None = None
    """The name of the preset from which `space` was made. The preset and the changes beside it are resolved
    when the definition is accepted."""
    space: SearchSpace

    @field_validator("learning_rate_range_test", mode="before")
    @classmethod
    def _read_range_test(cls, raw: Any) -> Any:
        return {} if raw is True else None if raw is False else raw

    @property
    def total_trials(self) -> int:
        """How many trials the study has: `trials`, but no more than there are points to suggest.

        A grid's points are those of the grid; for the other algorithms a range with `points` is a range.

        Raises:
            ValueError: Neither is known; no accepted definition is like that.
        """
        points = self.space.grid_size() if self.algorithm == "grid" else self.space.size()
        known = [number for number in (self.trials, points) if number is not None]
        if not known or (self.algorithm != "grid" and self.trials is None):
            raise ValueError("the search has no number of trials and its space has no finite grid")
        return min(known)


class ObjectiveSpec(Section):
    """What makes one trial better than another."""

    metric: FunctionName = "eval_loss"
    """One of the task's metrics, or of the study's own."""
    direction: Direction = "minimize"
    """Follows from the metric when omitted; a direction that contradicts the metric is a fault. A metric of
    the study's own needs one."""
    costs: tuple[Cost, ...] = ()
    """Minimized beside the metric: the study then has a Pareto front instead of one best trial."""

    @model_validator(mode="before")
    @classmethod
    def _follow_metric(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or raw.get("direction") is not None:
            return raw
        metric = raw.get("metric", "eval_loss")
        known = isinstance(metric, str) and metric in DIRECTIONS
        return {**raw, "direction": DIRECTIONS[metric] if known else "minimize"}

    @model_validator(mode="after")
    def _check(self) -> ObjectiveSpec:
        right = DIRECTIONS.get(self.metric, self.direction)
        if self.direction != right:
            message = f"contradicts the metric: use {right} with {self.metric}"
            raise problems(Fault(path="direction", value=self.direction, message=message, allowed=right))
        twice = [i for i, cost in enumerate(self.costs) if cost in self.costs[:i]]
        if twice:
            faults = (Fault(path=f"costs.{i}", value=self.costs[i], message="is listed twice") for i in twice)
            raise problems(*faults)
        return self


class GenerateSpec(Section):
    """How text is generated from the eval data, greedily, for the metrics that compare it."""

    max_new_tokens: Annotated[Whole, Field(ge=1, le=32_768)] = 64
    examples: Annotated[Whole, Field(ge=1)] | None = None
    """The first so many rows of the eval data. None: all."""
    when: Literal["end", "rungs"] = "end"
    """At a trial's end, or at each rung, where pruning needs it."""
    answer_pattern: Text | None = None
    """A regular expression that finds the answer in a text, for `answer_match`. It is compiled
    with an engine whose time is linear."""


class EvaluationSpec(Section):
    """When trials are evaluated, and when one has diverged."""

    every_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Evaluate each time this many training examples have been seen, and at the end. None: at the end."""
    divergence_factor: Annotated[Real, Field(gt=1)] = 4.0
    """A trial whose smoothed train loss exceeds this multiple of its start has diverged."""
    overfit_rungs: Annotated[Whole, Field(ge=1)] | None = None
    """End a trial as completed, with its best rung, once its eval loss has risen at this many rungs in a row
    while its train loss fell. None: never."""
    generate: Annotated[GenerateSpec | None, unsaid_if(None)] = None
    """None: nothing is generated."""


class BudgetSpec(Section):
    """When to stop, and how much at once."""

    max_parallel_trials: Annotated[Whole, Field(ge=1)] = 4
    max_failed_trials: Annotated[Whole, Field(ge=0)] | None = None
    max_gpu_hours: Annotated[Real, Field(gt=0)] | None = None
    timeout: Duration | None = None
    """Wall clock from the first trial's dispatch: `90s`, `30m`, `10h`, `2d`, `1h30m`."""
    target_value: Real | None = None
    """The search ends once a completed trial's objective is at least as good as this."""
    no_improvement_trials: Annotated[Whole, Field(ge=1)] | None = None
    """The search ends once this many trials in a row have ended without a better objective."""
    until: TimeOfDay | None = None
    """A time of day, `06:00`, at which a running study is paused or ended: the first such time after it
    started or was resumed."""
    until_timezone: str = "UTC"
    """The time zone of `until`: an IANA name such as `Europe/Berlin`."""
    until_action: Literal["pause", "end"] = "pause"
    """pause: the study waits until a person resumes it; end: it ends as if `timeout` had been reached."""
    max_retries: Annotated[Whole, Field(ge=0)] = 3
    """How often a trial whose worker died is tried again. Lost machines and restarts of the service are not
    caused by the trial and do not count."""

    @property
    def timeout_seconds(self) -> float | None:
        """`timeout` in seconds; None: no limit."""
        return None if self.timeout is None else parse_duration(self.timeout)


class ResourcesSpec(Section):
    """What the study's workers get."""

    workers: Annotated[
        Literal["auto"] | Annotated[Whole, Field(ge=1)], one_error("auto or a whole number, at least 1")
    ] = "auto"
    gpus_per_worker: Annotated[
        Literal["auto"] | Annotated[Real, Field(ge=0)], one_error("auto or a number, at least 0")
    ] = "auto"
    """auto: 1 where the cluster has GPUs, else 0 and one single-threaded worker per core."""
    micro_batch_size: Annotated[
        Literal["auto"] | Annotated[Whole, Field(ge=1)], one_error("auto or a whole number, at least 1")
    ] = "auto"
    trials_per_worker: Annotated[
        Literal["auto"] | Annotated[Whole, Field(ge=1)], one_error("auto or a whole number, at least 1")
    ] = "auto"
    """How many trials may share one base in a worker; 1 trains each alone. auto: as many as fit into memory
    and still raise throughput."""
    gradient_checkpointing: StrictBool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    keep_decoded: Annotated[KeepDecoded, unsaid_if("auto")] = "auto"
    """Whether workers decode the base's quantized weights once and keep them: faster, and as much memory more
    as an unquantized base takes. auto: where memory allows; on a GPU for small bases only."""


class StudyDefinition(Section):
    """A study as accepted. Stored as `model_dump(mode="json")`; immutable."""

    name: StudyName
    model: ModelSpec
    task: Task = "causal_lm"
    data: DataSpec
    search: SearchSpec
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Recipe fields that are fixed in this study."""
    metrics: Annotated[dict[FunctionName, MetricPath], unsaid_if({})] = Field(default_factory=dict)
    """The study's own metrics: name -> function."""
    losses: Annotated[dict[FunctionName, LossPath], unsaid_if({})] = Field(default_factory=dict)
    """The study's own losses, which `recipe.loss` may name: name -> function."""
    objective: ObjectiveSpec = ObjectiveSpec()
    pruning: Pruning = NoPruning()
    evaluation: EvaluationSpec = EvaluationSpec()
    budget: BudgetSpec = BudgetSpec()
    resources: ResourcesSpec = ResourcesSpec()
    constraints: dict[str, Bound] = Field(default_factory=dict)
    """Metric or cost -> its bounds. A trial that breaks one is never the best; the sampler learns this."""
    warm_start: WarmStartSpec | None = None
    repeats: RepeatsSpec | None = None

    @property
    def max_epochs(self) -> float:
        """Epochs of the longest trial the search may suggest."""
        parameter = self.search.space.parameters.get("epochs")
        fixed = build_recipe(self, {}).epochs
        if parameter is None:
            return fixed
        longest = float(max(parameter.choices) if isinstance(parameter, Choice) else parameter.max)
        return max(longest, fixed) if parameter.when else longest


def build_recipe(definition: StudyDefinition, params: Mapping[str, Any]) -> Recipe:
    """The recipe of one trial: defaults, then what the definition fixes, then the trial's parameters.

    Args:
        definition: The study's.
        params: The trial's parameters as Optuna holds them (`trial.params`) or as grid points.

    Raises:
        InvalidRecipe: A parameter is no recipe field or out of its bounds.
    """
    return Recipe.build({**definition.recipe, **definition.search.space.decode(params)})
