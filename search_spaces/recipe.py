"""One fully typed QLoRA fine-tune configuration. Every hyperparameter has a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from search_spaces.errors import Fault, InvalidRecipe
from search_spaces.faults import one_error, translate, unknown_keys
from search_spaces.quantities import Real, Seed, Whole

Scheduler = Literal["linear", "cosine", "constant"]
_ModuleName = Annotated[str, Field(min_length=1)]
TargetModules = Annotated[
    Literal["all-linear", "attention"] | Annotated[tuple[_ModuleName, ...], Field(min_length=1)],
    one_error("all-linear, attention, or a list of module names such as [q_proj, v_proj]"),
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
    """Peak learning rate [QLoRA]."""
    batch_size: Annotated[Whole, Field(ge=1)] = 16
    """Effective batch, in examples: what one optimizer step sees, on any device [QLoRA]."""
    epochs: Annotated[Real, Field(gt=0, le=10_000)] = 1.0
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """AdamW's decoupled decay, on the adapter's weights [HF]."""
    lora_r: Annotated[Whole, Field(ge=1)] = 16
    lora_alpha_ratio: Annotated[Real, Field(gt=0)] = 2.0
    """lora_alpha = ratio x lora_r, so that changing the rank does not change the update's scale."""
    lora_alpha: Annotated[Real, Field(gt=0)] | None = None
    """Absolute alpha; when given it wins over the ratio."""
    use_rslora: StrictBool = False
    """Scale by alpha / sqrt(r) in place of alpha / r (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    target_modules: TargetModules = "all-linear"
    """`all-linear`: every linear layer but the output head [QLoRA, LWR]; `attention`: its projections."""
    lr_scheduler: Scheduler = "linear"
    """Shape of the learning rate after warm-up [HF]."""
    warmup_ratio: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Share of all optimizer steps spent warming up linearly from 0."""
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    """Gradient clipping by global norm [HF]."""
    adam_beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[Real, Field(gt=0)] = 1e-8
    seed: Seed = 42
    """Adapter initialisation, data order and dropout. The same for all trials of a study by default, so
    that they differ by their hyperparameters alone."""

    @property
    def alpha(self) -> float:
        """The LoRA alpha in force."""
        return self.lora_alpha if self.lora_alpha is not None else self.lora_alpha_ratio * self.lora_r

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
    "seed": "the seed is luck, not a hyperparameter: a search over it finds the luckiest run, not the best"
    " recipe; fix it under recipe",
}
SEARCHABLE_FIELDS: tuple[str, ...] = tuple(name for name in RECIPE_FIELDS if name not in NOT_SEARCHABLE)
INT_FIELDS = frozenset({"batch_size", "lora_r", "seed"})
CATEGORICAL_FIELDS = frozenset({"use_rslora", "target_modules", "lr_scheduler"})
"""Fields without an order: searched as choices only."""
FLOAT_FIELDS = frozenset(RECIPE_FIELDS) - INT_FIELDS - CATEGORICAL_FIELDS


def recipe_faults(values: Mapping[str, Any], path: str = "") -> list[Fault]:
    """Everything that keeps `values` from being fields of a recipe; paths below `path`."""
    faults = unknown_keys(values, RECIPE_FIELDS, path, SYNONYMS, what="recipe field")
    try:
        Recipe.model_validate({name: value for name, value in values.items() if name in RECIPE_FIELDS})
    except ValidationError as error:
        faults += translate(error, path)
    return faults


def canonical(name: str, value: Any) -> Any:
    """`value` as the recipe field `name` holds it: `"1e-5"` as 1e-5, 8.0 as 8 where the field is whole.

    Raises:
        InvalidRecipe: The field cannot hold this value. Paths are relative to the field.
    """
    try:
        return getattr(Recipe.model_validate({name: value}), name)
    except ValidationError as error:
        faults = translate(error)
        raise InvalidRecipe(
            Fault(
                path=fault.path.removeprefix(name).removeprefix("."),
                value=fault.value,
                message=fault.message,
                allowed=fault.allowed,
                nearest=fault.nearest,
            )
            for fault in faults
        ) from None
