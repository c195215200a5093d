"""How large a base and its adapters are, from the configuration alone: no weight is read.

The model is built on torch's meta device, which has shapes and no numbers, so that the layers are those that
loading would quantize and adapt, whatever the architecture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel

from search_spaces.data_report import AdapterBytes, AdapterShape, BaseBytes, ComputeDtype
from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe
from search_spaces.tasks import TASKS, Task
from workers.base.base_model import build_without_weights, faults_of_loading, max_positions
from workers.base.heads import Labels, head_paths, lies_in, pooler_path
from workers.base.own_dropout import has_dropout
from workers.base.target_modules import linear_layers, output_head, resolve_target_modules, shortest_suffixes
from workers.lora.fused_experts import refuse_fused_experts
from workers.lora.row_layers import layers_without_rows
from workers.training.optimizers import adapter_bytes

_BLOCK = 64
"""Weights that share one quantization constant (QLoRA, section 3; the default of bitsandbytes)."""
_NESTED_BLOCK = 256
"""Constants that share a constant of their own, with double quantization."""
_BYTES: dict[ComputeDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class BaseGeometry:
    """The shapes of a base."""

    outline: PreTrainedModel
    """Without weights."""
    parameters: int
    """Shared ones counted once."""
    linear: dict[str, tuple[int, int]]
    """Rows and columns of every weight that can be adapted, by its layer's path. All of them are quantized
    but that of the pooler."""
    vocabulary_size: int
    max_positions: int | None
    head: str | None = None
    """The path of the output head, which is not adapted."""
    pooler: str | None = None
    """The path of the layer before a new head, which is adapted, but not quantized."""
    heads: tuple[str, ...] = ()
    """Paths of the new heads, which each trial has for itself, in full precision."""
    head_parameters: int = 0
    """Theirs."""
    without_rows: frozenset[str] = frozenset()
    """Paths of layers where trials cannot be told apart (`workers.lora.row_layers`)."""

    @property
    def architecture(self) -> str:
        """The model's class."""
        return type(self.outline).__name__

    @property
    def own_dropout(self) -> bool:
        """Whether it draws numbers of its own in training, unless that is turned off."""
        return has_dropout(self.outline)

    @property
    def quantizable_parameters(self) -> int:
        """Numbers in the weights that are quantized."""
        return sum(rows * columns for rows, columns in self._quantized())

    def _quantized(self) -> list[tuple[int, int]]:
        return [
            shape for path, shape in self.linear.items() if not (self.pooler and lies_in(path, [self.pooler]))
        ]

    def base_bytes(self, spec: ModelSpec, quantization: Quantization, dtype: ComputeDtype) -> BaseBytes:
        """What the weights take on a device, with their quantization constants and nothing else.

        nf4 and fp4: half a byte a weight, and per 64 weights a constant of 4 bytes, or with double
        quantization of 1 byte and per 256 of these 4 bytes (Dettmers et al. 2023, section 3). int8: a byte a
        weight and 4 bytes a row (Dettmers et al. 2022, arXiv 2208.07339, section 2.1).
        """
        size = _BYTES[dtype]
        total = (self.parameters - self.quantizable_parameters) * size
        for rows, columns in self._quantized():
            weights = rows * columns
            if quantization == "none":
                total += weights * size
            elif quantization == "int8":
                total += weights + 4 * rows
            else:
                blocks = math.ceil(weights / _BLOCK)
                nested = blocks + 4 * math.ceil(blocks / _NESTED_BLOCK)
                total += math.ceil(weights / 2) + (nested if spec.double_quantization else 4 * blocks)
        # LLM.int8() on a GPU, where models compute in half precision, is never decoded.
        decodable = quantization in ("nf4", "fp4") or (quantization == "int8" and dtype == "float32")
        decoded = self.quantizable_parameters * size if decodable else 0
        return BaseBytes(quantization=quantization, compute_dtype=dtype, bytes=total, decoded_bytes=decoded)

    def adapter(self, shape: AdapterShape) -> AdapterBytes:
        """What one trial keeps beside the base, activations left out.

        With the second gradient buffer that a batch of several rows has, whether or not it spans passes. A
        batch of one row has none.

        Raises:
            AdapterError: The target modules match no layer, or layers that PEFT takes for others.
        """
        paths = resolve_target_modules(shape.target_modules, list(self.linear), self.architecture, self.head)
        modules = [name for name, _ in self.outline.named_modules()]
        refuse_fused_experts(LoraConfig(target_modules=shortest_suffixes(paths, modules)), self.outline)
        # Rows and columns of all the weights adapted: the parameters of an adapter of rank 1.
        sides = sum(sum(self.linear[path]) for path in paths)
        parameters = shape.lora_r * sides + self.head_parameters
        recipe = Recipe(optimizer=shape.optimizer, sgd_momentum=shape.sgd_momentum)
        return AdapterBytes(
            lora_r=shape.lora_r,
            target_modules=shape.target_modules,
            optimizer=shape.optimizer,
            trainable_parameters=parameters,
            bytes=adapter_bytes(parameters, recipe, accumulates=True),
            layers_without_rows=tuple(
                sorted(
                    {path.rpartition(".")[2] for path in (*paths, *self.heads) if path in self.without_rows}
                )
            ),
        )


def read_geometry(
    folder: Path, name: str, task: Task = "causal_lm", labels: Labels | None = None
) -> BaseGeometry:
    """The shapes of the model in a folder that `check_model_folder` has passed.

    Args:
        folder: Holds its config.json.
        name: The model as the definition calls it, for messages.
        task: What it is to be trained for.
        labels: What its head answers; None: a number, or the task has no head.

    Raises:
        ModelError: transformers cannot build the model that config.json describes.
    """
    with faults_of_loading(f"The model {name} could not be loaded from {folder}"):
        return _geometry(build_without_weights(folder, task, labels), TASKS[task].has_head)


def _geometry(model: PreTrainedModel, has_head: bool) -> BaseGeometry:
    heads = head_paths(model) if has_head else ()
    modules = dict(model.named_modules())
    shapes = {path: modules[path].weight.shape for path in linear_layers(model) if not lies_in(path, heads)}
    return BaseGeometry(
        outline=model,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear={path: (int(shape[0]), int(shape[1])) for path, shape in shapes.items()},
        vocabulary_size=int(model.get_input_embeddings().weight.shape[0]),
        max_positions=max_positions(model),
        head=output_head(model),
        pooler=pooler_path(model) if heads else None,
        heads=heads,
        without_rows=layers_without_rows(model, heads),
        head_parameters=sum(
            parameter.numel() for path in heads for parameter in model.get_submodule(path).parameters()
        ),
    )
