"""Many trials' adapters on one base: made, switched, saved and removed by PEFT.

Only one adapter is active at a time here. The base's own tensors are never touched: when the last
adapter goes, its wrappers are taken off too, and the model's modules are the very ones it began with.
"""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from search_spaces.recipe import Recipe
from workers.base_model import LoadedBase
from workers.generators import seeded
from workers.target_modules import linear_layers, resolve_target_modules, shortest_suffixes


@dataclass(frozen=True)
class Adapter:
    """One trial's adapter, living on a base."""

    name: str
    parameters: tuple[torch.nn.Parameter, ...]
    """Its LoRA matrices: float32, on the base's device."""

    @property
    def trainable_parameters(self) -> int:
        """Numbers in them."""
        return sum(parameter.numel() for parameter in self.parameters)


class AdapterHost:
    """Puts adapters on a base and takes them off again."""

    def __init__(self, base: LoadedBase) -> None:
        """
        Args:
            base: Without adapters.
        """
        self.base = base
        self._linear = linear_layers(base.model)
        self._modules = {name: type(module) for name, module in base.model.named_modules()}
        self._peft: PeftModel | None = None
        self._names: list[str] = []

    def add(self, name: str, recipe: Recipe) -> Adapter:
        """Makes an adapter, initialised under the recipe's own seed, and leaves it active.

        PEFT's default initialisation: A is Kaiming uniform and B is 0, so an untrained adapter changes
        nothing. It is the adapter that `transformers.set_seed(recipe.seed)` and `get_peft_model` make, and
        nobody else's random draws are disturbed.

        Raises:
            AdapterError: `target_modules` matches no layer of the base.
            Exception: PEFT's or torch's, when it cannot be made; nothing of it stays on the base.
        """
        config = self._config(recipe)
        try:
            with seeded(recipe.seed, self.base.device):
                if self._peft is None:
                    self._peft = get_peft_model(self.base.model, config, adapter_name=name)
                else:
                    self._peft.add_adapter(name, config)
        except BaseException:
            self._take_back(name)
            raise
        self._names.append(name)
        self.activate(name)
        return Adapter(name, tuple(self._parameters(name).values()))

    def activate(self, name: str) -> None:
        """Lets this adapter alone take part in forward passes and receive gradients."""
        self._live().set_adapter(name)

    def remove(self, name: str) -> None:
        """Takes an adapter off; with the last one go PEFT's wrappers."""
        self._names.remove(name)
        peft = self._live()
        if self._names:
            self.activate(self._names[0])  # PEFT warns when the active adapter is deleted
            peft.delete_adapter(name)
        else:
            peft.unload()
            self._peft = None

    def save(self, name: str, folder: Path) -> None:
        """Saves an adapter so that `PeftModel.from_pretrained(base, folder)` reads it.

        `folder` appears whole or not at all: the files are written beside it and moved into place, over
        whatever was there before. Its parent is made if need be.
        """
        peft = self._live()
        config = copy.copy(peft.peft_config[name])
        config.base_model_name_or_path = self.base.spec.id
        config.revision = self.base.spec.revision
        config.inference_mode = True
        # Passing the adapter's own weights spares PEFT a state dict of the whole quantized base.
        weights = get_peft_model_state_dict(
            peft, state_dict=self._parameters(name), adapter_name=name, save_embedding_layers=False
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        fresh.mkdir()
        try:
            save_file(
                {key: weight.detach().contiguous().cpu() for key, weight in weights.items()},
                fresh / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
            config.save_pretrained(str(fresh))
            for file in fresh.iterdir():
                _flush(file)
            _replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _take_back(self, name: str) -> None:
        """Removes a half-made adapter: PEFT wraps layer after layer, and leaves them so when one fails."""
        if self._peft is not None:
            self.activate(self._names[0])  # PEFT warns when the active adapter is deleted
        for path, module in list(self.base.model.named_modules()):
            if not isinstance(module, BaseTunerLayer):
                continue
            if self._peft is not None:
                module.delete_adapter(name)
            else:
                self.base.model.set_submodule(path, module.get_base_layer())

    def _config(self, recipe: Recipe) -> LoraConfig:
        selected = resolve_target_modules(recipe.target_modules, self._linear, type(self.base.model).__name__)
        alpha = recipe.alpha
        return LoraConfig(
            r=recipe.lora_r,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            lora_dropout=recipe.lora_dropout,
            use_rslora=recipe.use_rslora,
            target_modules=shortest_suffixes(selected, self._modules),
            # GPT-2's Conv1D keeps its weight as [in, out].
            fan_in_fan_out=all(issubclass(self._modules[name], Conv1D) for name in selected),
            bias="none",
            task_type="CAUSAL_LM",
        )

    def _parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        """An adapter's matrices by PEFT's names, in the model's order."""
        return {
            path: parameter
            for path, parameter in self._live().named_parameters()
            if path.endswith((f".lora_A.{name}.weight", f".lora_B.{name}.weight"))
        }

    def _live(self) -> PeftModel:
        if self._peft is None:
            raise RuntimeError("the base has no adapter")
        return self._peft


def _flush(file: Path) -> None:
    """Onto the disk, before a rename makes it the adapter that people rely on."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _replace(fresh: Path, folder: Path) -> None:
    """Moves `fresh` to `folder`. A folder cannot be renamed over another, so the older one steps aside."""
    if not folder.exists():
        fresh.rename(folder)
        return
    older = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    folder.rename(older)
    try:
        fresh.rename(folder)
    except OSError:
        older.rename(folder)
        raise
    shutil.rmtree(older)
