"""One fully typed QLoRA fine-tune configuration. Every hyperparameter has a value."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import to_jsonable_python

from search_spaces.errors import Fault, InvalidRecipe
from search_spaces.faults import one_error, translate, unknown_keys
from search_spaces.tasks import TASKS, Task
from search_spaces.values.defaults import unsaid_if
from search_spaces.values.numbers import Real, Seed, Whole
from search_spaces.values.own_functions import NAME

Scheduler = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw", "sgd", "rmsprop"]
LearningRateScaling = Literal["none", "sqrt", "linear"]
Quantization = Literal["nf4", "fp4", "int8", "none"]
_ModuleName = Annotated[str, Field(min_length=1)]
TargetModules = Annotated[
    Literal["all-linear", "attention"] | Annotated[tuple[_ModuleName, ...], Field(min_length=1)],
    one_error("all-linear, attention, or a list of module names such as [q_proj, v_proj]"),
]
_LossName = Annotated[str, Field(pattern=NAME), one_error("the name of a loss")]
_Label = Annotated[str, Field(min_length=1)]
ClassWeights = Annotated[
    Literal["none", "balanced"] | Annotated[dict[_Label, Annotated[Real, Field(gt=0)]], Field(min_length=1)],
    one_error("none, balanced, or a mapping of label names to positive numbers"),
]

SYNONYMS: Mapping[str, str] = {
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "effective_batch_size": "batch_size",
    "r": "lora_r",
    "rank": "lora_r",
    "lora_rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "wd": "weight_decay",
    "warmup": "warmup_ratio",
    "max_gradient_norm": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "epsilon": "adam_epsilon",
    "loss_type": "loss",
    "focal_loss_gamma": "focal_gamma",
    "delta": "huber_delta",
    "label_smoothing_factor": "label_smoothing",
    "class_weight": "class_weights",
    "neftune_noise_alpha": "neftune_alpha",
    "head_lr_ratio": "head_learning_rate_ratio",
    "beta": "preference_beta",
    "dpo_beta": "preference_beta",
    "orpo_beta": "preference_beta",
}
"""What transformers, PEFT and people call our fields, for the hint in an error message."""


class Recipe(BaseModel):
    """The hyperparameters of one trial. Defaults name their source.

    Sources: [QLoRA] Dettmers et al. 2023, arXiv 2305.14314, table 9 and section 4.2 (7B: learning rate
    2e-4, batch 16, Adam beta2 0.999, max gradient norm 0.3, dropout 0.1 up to 13B, all linear layers).
    [LWR] "LoRA Without Regret", Schulman et al. 2025 (all-linear targets, rate nearly rank-independent).
    [HF] the default of `transformers.TrainingArguments`. [PEFT] the default of `peft.LoraConfig`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: Annotated[Real, Field(gt=0)] = 2e-4
    """Peak learning rate [QLoRA]; with `learning_rate_scaling`, that of the reference batch."""
    learning_rate_scaling: LearningRateScaling = "none"
    """How the rate is scaled with the batch: times sqrt(batch_size / learning_rate_batch_size), as noise
    suggests for Adam (Malladi et al. 2022, arXiv 2205.10287), or times their ratio (Goyal et al. 2017,
    arXiv 1706.02677)."""
    learning_rate_batch_size: Annotated[Whole, Field(ge=1)] = 16
    """The batch size at which `learning_rate` applies, if it is scaled."""
    batch_size: Annotated[Whole, Field(ge=1)] = 16
    """Effective batch, in examples: what one optimizer step sees, on any device [QLoRA]."""
    epochs: Annotated[Real, Field(gt=0, le=10_000)] = 1.0
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """Decoupled decay (adamw) or L2 penalty (sgd, rmsprop), on the adapter's weights [HF]."""
    lora_r: Annotated[Whole, Field(ge=1)] = 16
    lora_alpha_ratio: Annotated[Real, Field(gt=0)] = 2.0
    """lora_alpha = ratio x lora_r, so that changing the rank does not change the update's scale."""
    lora_alpha: Annotated[Real, Field(gt=0)] | None = None
    """Absolute alpha; if given, it is used instead of the ratio."""
    use_rslora: StrictBool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    target_modules: TargetModules = "all-linear"
    """`all-linear`: every linear layer but the output head [QLoRA, LWR]; `attention`: its projections."""
    lr_scheduler: Scheduler = "linear"
    """Shape of the learning rate after warm-up [HF]."""
    warmup_ratio: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Share of all optimizer steps spent warming up linearly from 0."""
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    """Gradient clipping by global norm [HF]."""
    optimizer: Optimizer = "adamw"
    """adamw [QLoRA]; sgd and rmsprop as torch.optim has them."""
    adam_beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[Real, Field(gt=0)] = 1e-8
    sgd_momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    sgd_nesterov: StrictBool = False
    rmsprop_alpha: Annotated[Real, Field(ge=0, lt=1)] = 0.99
    """Smoothing of the squared gradient (torch.optim.RMSprop)."""
    quantization: Quantization | None = None
    """Quantization of the base; None: the study's `model.quantization`."""
    max_length: Annotated[Whole, Field(ge=8)] | None = None
    """Tokens of a training example; None: the study's `data.max_length`, which evaluation always uses."""
    seed: Seed = 42
    """Adapter initialisation, data order and dropout. The same for all trials of a study by default, so
    that they differ by their hyperparameters alone."""
    loss: Annotated[_LossName | None, unsaid_if(None)] = None
    """What is minimized: a loss of the study's task (`search_spaces.tasks.TASKS`), or one of its own by its
    name in `losses`; None: the task's first."""
    focal_gamma: Annotated[Real, Field(ge=0, le=10), unsaid_if(2.0)] = 2.0
    """How far focal loss turns from what is predicted well (Lin et al. 2017, arXiv 1708.02002); 0 is
    cross-entropy."""
    huber_delta: Annotated[Real, Field(gt=0), unsaid_if(1.0)] = 1.0
    """The error from which Huber's loss grows linearly (torch.nn.HuberLoss)."""
    label_smoothing: Annotated[Real, Field(ge=0, lt=1), unsaid_if(0.0)] = 0.0
    """Share of a target spread over all classes (Szegedy et al. 2015, arXiv 1512.00567); with `dpo` the share
    of pairs taken to be labelled the wrong way round, at most 0.5."""
    class_weights: Annotated[ClassWeights, unsaid_if("none")] = "none"
    """Weights of the classes in the loss. balanced: rows / (classes x rows of the class), as scikit-learn."""
    neftune_alpha: Annotated[Real, Field(ge=0), unsaid_if(0.0)] = 0.0
    """Noise on the embeddings in training (Jain et al. 2023, arXiv 2310.05914); 0: none."""
    head_learning_rate_ratio: Annotated[Real, Field(gt=0), unsaid_if(1.0)] = 1.0
    """The rate of a new head as a multiple of the adapter's."""
    preference_beta: Annotated[Real, Field(gt=0), unsaid_if(0.1)] = 0.1
    """beta of DPO (Rafailov et al. 2023, arXiv 2305.18290) and SimPO (Meng et al. 2024, arXiv 2405.14734),
    lambda of ORPO (Hong et al. 2024, arXiv 2403.07691)."""
    simpo_gamma: Annotated[Real, Field(ge=0), unsaid_if(0.5)] = 0.5
    """The margin by which SimPO wants the chosen answer's reward to exceed the rejected one's."""

    @property
    def alpha(self) -> float:
        """The LoRA alpha in force."""
        return self.lora_alpha if self.lora_alpha is not None else self.lora_alpha_ratio * self.lora_r

    @property
    def peak_learning_rate(self) -> float:
        """The rate after warm-up, scaled to the batch where the recipe says so."""
        ratio = self.batch_size / self.learning_rate_batch_size
        factor = {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[self.learning_rate_scaling]
        return self.learning_rate * factor

    def loss_of(self, task: Task) -> str:
        """What a trial of the task minimizes."""
        return self.loss or TASKS[task].losses[0]

    def in_force(self, *, quantization: str, max_length: int, task: Task = "causal_lm") -> dict[str, Any]:
        """Every hyperparameter of the task as JSON, with the value that is trained with.

        Args:
            quantization: The study's `model.quantization`.
            max_length: The study's `data.max_length`, in tokens.
            task: The study's.
        """
        fields = [name for name in RECIPE_FIELDS if task in TASK_FIELDS.get(name, (task,))]
        return {
            **self.as_json(fields),
            "loss": self.loss_of(task),
            "lora_alpha": self.alpha,
            "lora_alpha_ratio": self.alpha / self.lora_r,
            "quantization": self.quantization or quantization,
            "max_length": self.max_length or max_length,
        }

    def as_json(self, names: Container[str]) -> dict[str, Any]:
        """These fields as JSON, those with their default too, which `model_dump` may leave out."""
        values: dict[str, Any] = to_jsonable_python(
            {name: getattr(self, name) for name in RECIPE_FIELDS if name in names}
        )
        return values

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from some of its fields; the others keep their defaults.

        Raises:
            InvalidRecipe: Unknown fields or values out of bounds, all of them named.
        """
        faults = recipe_faults(values)
        if faults:
            raise InvalidRecipe(faults)
        return cls.model_validate(dict(values))


RECIPE_FIELDS: tuple[str, ...] = tuple(Recipe.model_fields)
NOT_SEARCHABLE: Mapping[str, str] = {
    "seed": "the best seed is only the luckiest one, so the search would not find the best"
    " recipe; fix it under recipe",
}
SEARCHABLE_FIELDS: tuple[str, ...] = tuple(name for name in RECIPE_FIELDS if name not in NOT_SEARCHABLE)
INT_FIELDS = frozenset({"batch_size", "learning_rate_batch_size", "lora_r", "max_length", "seed"})
CATEGORICAL_FIELDS = frozenset(
    {
        "use_rslora",
        "target_modules",
        "lr_scheduler",
        "learning_rate_scaling",
        "optimizer",
        "sgd_nesterov",
        "quantization",
        "loss",
        "class_weights",
    }
)
"""Fields without an order: searched as choices only."""
OPTIMIZER_FIELDS: Mapping[str, Optimizer] = {
    "adam_beta1": "adamw",
    "adam_beta2": "adamw",
    "adam_epsilon": "adamw",
    "sgd_momentum": "sgd",
    "sgd_nesterov": "sgd",
    "rmsprop_alpha": "rmsprop",
}
"""Fields that only one optimizer reads. Where the optimizer is searched they are conditional on it."""
NULL_MEANS_STUDY: Mapping[str, str] = {
    "quantization": "the study's model.quantization",
    "max_length": "the study's data.max_length",
    "loss": "the task's first loss",
}
"""Fields that a recipe leaves to another section of the definition: null is no value to search."""
DEPENDENT_FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{name: ("optimizer", (optimizer,)) for name, optimizer in OPTIMIZER_FIELDS.items()},
    "learning_rate_batch_size": ("learning_rate_scaling", ("sqrt", "linear")),
    "focal_gamma": ("loss", ("focal",)),
    "huber_delta": ("loss", ("huber",)),
    "label_smoothing": ("loss", ("cross_entropy", "focal", "dpo")),
    "preference_beta": ("loss", ("dpo", "orpo", "simpo")),
    "simpo_gamma": ("loss", ("simpo",)),
}
"""Field -> the field that decides whether it is read at all, and the values with which it is."""
_LABELLED: tuple[Task, ...] = ("sequence_classification", "token_classification")
TASK_FIELDS: Mapping[str, tuple[Task, ...]] = {
    "focal_gamma": tuple(task for task, spec in TASKS.items() if "focal" in spec.losses),
    "huber_delta": ("regression",),
    "label_smoothing": ("causal_lm", "seq2seq_lm", *_LABELLED, "preference"),
    "class_weights": _LABELLED,
    "head_learning_rate_ratio": tuple(task for task, spec in TASKS.items() if spec.has_head),
    "preference_beta": ("preference",),
    "simpo_gamma": ("preference",),
}
"""Fields that only some tasks read, and these."""


def recipe_faults(values: Mapping[str, Any], path: str = "") -> list[Fault]:
    """Everything that keeps `values` from being fields of a recipe; paths below `path`."""
    faults = unknown_keys(values, RECIPE_FIELDS, path, SYNONYMS, what="recipe field")
    try:
        Recipe.model_validate({name: value for name, value in values.items() if name in RECIPE_FIELDS})
    except ValidationError as error:
        faults += translate(error, path)
    return faults


def canonical(name: str, value: Any) -> Any:
    """`value` as the recipe field `name` holds it: 8.0 as 8 where the field is whole, a list as a tuple.

    Raises:
        InvalidRecipe: The field cannot hold this value. Paths are relative to the field.
    """
    try:
        return getattr(Recipe.model_validate({name: value}), name)
    except ValidationError as error:
        raise InvalidRecipe(
            replace(fault, path=fault.path.removeprefix(name).removeprefix(".")) for fault in translate(error)
        ) from None
