"""Many trials' adapters on one base: made, saved and removed by PEFT, and trained from flat tensors.

PEFT's parameters become views of one flat tensor per adapter, its slot of a bank, so that an optimizer steps
one tensor, a norm is one reduction and a checkpoint is one copy. The base's own tensors are never touched:
when the last adapter goes, its wrappers are taken off too, and the model's modules are the very ones it began
with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict
from safetensors.torch import save
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from search_spaces.recipe import Recipe
from search_spaces.values.artifact_layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_CONFIG
from workers.base.base_model import LoadedBase, leave_inputs_without_gradient
from workers.base.heads import TASK_MODELS, initialise, lies_in, undecayed
from workers.base.target_modules import linear_layers, output_head, resolve_target_modules, shortest_suffixes
from workers.device.generators import seeded
from workers.lora.bank import Banks, Slot, Span
from workers.lora.fused_experts import refuse_fused_experts
from workers.lora.multi_lora import Form, LayerAdapter, MultiLora, RowGroup


@dataclass(frozen=True)
class Segment:
    """A part of an adapter's flat tensor that steps in its own way."""

    numbers: int
    """How many; the parts follow each other."""
    is_head: bool = False
    """Whether it steps at the heads' own learning rate."""
    is_decayed: bool = True
    """Whether weight decay is for it."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """One trial's adapter, living on a base."""

    name: str
    master: torch.nn.Parameter
    """float32 [P]: all its LoRA matrices, then its heads, on the base's device. `grad` belongs to the
    optimizer."""
    gradient: torch.Tensor
    """float32 [P]: what the passes add to; zero it before one."""
    place: tuple[int, int]
    """Of its slot: adapters of neighbouring slots are taken together if their rows follow each other."""
    layers: dict[int, LayerAdapter]
    """Views of both, by layer number."""
    recipe: Recipe
    heads: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    """Its own copies of the base's heads, by their path; their parameters are views of both, too."""
    segments: tuple[Segment, ...] = ()
    """The matrices, the heads' decayed parameters and those that decay spares; none without heads."""

    @property
    def dropout(self) -> float:
        """The share of a layer's inputs that is dropped in training."""
        return self.recipe.lora_dropout

    @property
    def trainable_parameters(self) -> int:
        """P."""
        return self.master.numel()

    def rows(self, count: int, keys: Sequence[int] = ()) -> RowGroup:
        """`count` rows of a pass as this adapter's; with `keys`, under its dropout."""
        return RowGroup(self.layers, count, self.dropout if keys else 0.0, keys, self.heads)


class AdapterHost:
    """Puts adapters on a base and takes them off again."""

    def __init__(self, base: LoadedBase, slots: int | None = None) -> None:
        """
        Args:
            base: Without adapters.
            slots: Most of one bank; None: as `Banks` has it.
        """
        self.base = base
        self.multi_lora = MultiLora(base.compute_dtype)
        self._linear = [path for path in linear_layers(base.model) if not lies_in(path, base.heads)]
        self._head = output_head(base.model)
        self._heads = {path: base.model.get_submodule(path) for path in base.heads}
        self._numbers = {path: number for number, path in enumerate(self._linear)}
        self._taken_over: WeakSet[torch.nn.Module] = WeakSet()
        self._modules = {name: type(module) for name, module in base.model.named_modules()}
        self._peft: PeftModel | None = None
        self._names: list[str] = []
        self._banks = Banks(base.device, slots)
        self._slots: dict[str, Slot] = {}

    @property
    def shares_evaluations(self) -> bool:
        """Whether rows of several adapters may be in one forward pass without changing each other."""
        return self.base.rows_independent and self.multi_lora.rows_separate

    @property
    def shares_passes(self) -> bool:
        """The same in training, where a base with dropout of its own draws it for a pass as a whole."""
        return self.shares_evaluations and not self.base.has_dropout

    @property
    def has_adapters(self) -> bool:
        """Whether any adapter is on the base."""
        return bool(self._names)

    @property
    def trains_heads(self) -> bool:
        """Whether adapters come with heads of their own."""
        return bool(self._heads)

    def choose_form(self, groups: Sequence[RowGroup]) -> Form:
        """How the products of a pass are best taken.

        On one CPU thread, which is what a worker has, `looped` was the fastest or level with it
        (`docs/decisions/0031-banks-of-slots.md`). On a GPU the number of kernels should count: `batched`, or
        `grouped` in bfloat16, the only dtype that torch has a kernel for. Not measured.
        """
        if self.base.device.type == "cpu" or len(groups) == 1:
            return "looped"
        return "grouped" if self.base.compute_dtype == torch.bfloat16 else "batched"

    def add(self, name: str, recipe: Recipe) -> Adapter:
        """Makes an adapter, initialised under the recipe's own seed.

        PEFT's default initialisation: A is Kaiming uniform and B is 0, so an untrained adapter changes
        nothing. It is the adapter that `transformers.set_seed(recipe.seed)` and `get_peft_model` make, and
        nobody else's random draws are disturbed. Heads that the checkpoint lacks are drawn before it, in the
        model's order, as the architecture's own `_init_weights` does.

        Raises:
            AdapterError: `target_modules` matches no layer of the base, or layers that PEFT takes for others.
            Exception: PEFT's or torch's, when it cannot be made; nothing of it stays on the base.
        """
        selected = resolve_target_modules(
            recipe.target_modules, self._linear, type(self.base.model).__name__, self._head
        )
        config = self._config(recipe, selected)
        refuse_fused_experts(config, self.base.model)
        try:
            with seeded(recipe.seed, self.base.device):
                self._draw_heads()
                wrapped = dict(self._wrapped())
                if self._peft is not None and wrapped.keys() >= set(selected):
                    self._extend(name, config, {path: wrapped[path] for path in selected})
                else:
                    self._wrap(name, config)
            adapter = self._flatten(name, recipe)
        except BaseException:
            self._take_back(name)
            raise
        self._names.append(name)
        return adapter

    def activate(self, name: str) -> None:
        """Makes this the only adapter in PEFT's own forward, which passes outside `MultiLora.running` use."""
        self._live().set_adapter(name)

    def remove(self, name: str) -> None:
        """Takes an adapter off; with the last one go PEFT's wrappers."""
        self._names.remove(name)
        self._banks.give_back(self._slots.pop(name))
        peft = self._live()
        if self._names:
            if any(name in layer.active_adapters for _, layer in self._wrapped()):
                self.activate(self._names[0])  # PEFT warns when the active adapter is deleted
            peft.delete_adapter(name)
        else:
            self._unwrap(peft)

    def files(self, name: str) -> dict[str, bytes]:
        """The contents of the files that `PeftModel.from_pretrained` reads, by their names.

        With a head, also the model's config.json, which says how many labels it has and what they are called:
        `AutoModelFor...from_pretrained(base, config=AutoConfig.from_pretrained(folder))`.
        """
        peft = self._live()
        config = copy.copy(peft.peft_config[name])
        config.base_model_name_or_path = self.base.spec.id
        config.revision = self.base.spec.revision
        config.inference_mode = True
        # In memory: safetensors' own writer has an error of its own kind for a full disk.
        data = save(
            {key: weight.contiguous().cpu() for key, weight in self.weights(name).items()},
            metadata={"format": "pt"},
        )
        files = {ADAPTER_WEIGHTS: data, ADAPTER_CONFIG: _config_file(config)}
        if self._heads:
            files[MODEL_CONFIG] = _model_config_file(self.base.model)
        return files

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """An adapter's matrices and heads by their names in its file; what is written to them is its own."""
        # Passing the adapter's own weights spares PEFT a state dict of the whole quantized base.
        weights = get_peft_model_state_dict(
            self._live(), state_dict=self._parameters(name), adapter_name=name, save_embedding_layers=False
        )
        return {key: weight.detach() for key, weight in weights.items()}

    def _wrap(self, name: str, config: LoraConfig) -> None:
        """Has PEFT make the adapter, and takes over the layers that it wraps for it."""
        if self._peft is None:
            self._peft = get_peft_model(self.base.model, config, adapter_name=name)
            leave_inputs_without_gradient(self.base.model)
        else:
            self._peft.add_adapter(name, config)
        for path, module in self.base.model.named_modules():
            if isinstance(module, BaseTunerLayer) and module not in self._taken_over:
                self.multi_lora.take_over(module, self._numbers[path])
                self._taken_over.add(module)

        for path in self._heads:
            module = self.base.model.get_submodule(path)
            if isinstance(module, ModulesToSaveWrapper) and module not in self._taken_over:
                self.multi_lora.take_over_head(module, path)
                self._taken_over.add(module)

    def _draw_heads(self) -> None:
        """Draws new heads in the modules that PEFT copies for an adapter, which it keeps in wrappers."""
        if not self.base.new_heads:
            return
        model = self.base.model
        wrappers = {path: model.get_submodule(path) for path in self._heads}
        for path, head in self._heads.items():
            model.set_submodule(path, head)
        initialise(model, self.base.new_heads)
        for path, wrapper in wrappers.items():
            model.set_submodule(path, wrapper)

    def _extend(self, name: str, config: LoraConfig, layers: dict[str, BaseTunerLayer]) -> None:
        """What PEFT's `add_adapter` does to layers that have adapters already.

        `add_adapter` walks all modules of all adapters several times over, while the whole pack stands
        still: 0.6 s for the 32nd adapter of 24 layers on one CPU core, and 0.1 s in this way.
        """
        self._live().peft_config[name] = config
        for path, layer in layers.items():
            layer.update_layer(name, config.r, lora_alpha=config.lora_alpha, target_name=path, config=config)
        for path in self._heads:
            self.base.model.get_submodule(path).update(name)

    def _wrapped(self) -> Iterator[tuple[str, BaseTunerLayer]]:
        """The layers that PEFT has wrapped, in the model's order."""
        for path in self._linear:
            if isinstance(module := self.base.model.get_submodule(path), BaseTunerLayer):
                yield path, module

    def _flatten(self, name: str, recipe: Recipe) -> Adapter:
        """Moves the adapter's numbers into a slot and leaves PEFT's parameters as its views."""
        layers = {self._numbers[path]: layer for path, layer in self._wrapped() if name in layer.lora_A}
        spans: dict[int, Span] = {}
        offset = 0
        for number, module in layers.items():
            (rank, d_in), d_out = module.lora_A[name].weight.shape, len(module.lora_B[name].weight)
            spans[number] = Span(offset, rank, d_in, d_out)
            offset = spans[number].stop
        heads = self._heads_of(name)
        decayed, spared = _by_decay(heads.values())
        decayed_size = sum(parameter.numel() for parameter in decayed)
        total = offset + decayed_size + sum(parameter.numel() for parameter in spared)
        parts = (
            Segment(offset),
            Segment(decayed_size, True),
            Segment(total - offset - decayed_size, True, False),
        )
        segments = tuple(part for part in parts if part.numbers) if heads else ()
        slot = self._slots[name] = self._banks.take(tuple(spans.items()), total)
        master, gradient = (row[slot.row, :total] for row in (slot.bank.weights, slot.bank.gradients))
        gradient.zero_()
        views: dict[int, LayerAdapter] = {}
        for number, module in layers.items():
            a, b = module.lora_A[name].weight, module.lora_B[name].weight
            mine = LayerAdapter(slot.bank, slot.row, spans[number], float(module.scaling[name]))
            mine.a.copy_(a.detach())
            mine.b.copy_(b.detach().t())
            a.data, b.data = mine.a, mine.b_t
            views[number] = mine
        for parameter in (*decayed, *spared):
            end = offset + parameter.numel()
            flat, grad = (tensor[offset:end].view(parameter.shape) for tensor in (master, gradient))
            flat.copy_(parameter.detach())
            parameter.data = flat
            parameter.grad = grad  # autograd adds to it where it is
            offset = end
        return Adapter(name, torch.nn.Parameter(master), gradient, slot.place, views, recipe, heads, segments)

    def _heads_of(self, name: str) -> dict[str, torch.nn.Module]:
        """An adapter's own copies of the heads."""
        wrappers = {path: self.base.model.get_submodule(path) for path in self._heads}
        return {path: wrapper.modules_to_save[name] for path, wrapper in wrappers.items()}

    def _unwrap(self, peft: PeftModel) -> None:
        """Takes PEFT off the base, and the mark it leaves there, at which it warns when it comes again."""
        peft.unload()
        for path, head in self._heads.items():  # PEFT leaves an adapter's copy in its place
            self.base.model.set_submodule(path, head)
        self._peft = None
        if hasattr(self.base.model, "peft_config"):
            del self.base.model.peft_config

    def _take_back(self, name: str) -> None:
        """Removes a half-made adapter: PEFT wraps layer after layer, and leaves them so when one fails."""
        if name in self._slots:
            self._banks.give_back(self._slots.pop(name))
        if self._peft is not None and not self._names:
            self._unwrap(self._peft)
        elif self._peft is not None:
            self.activate(self._names[0])  # PEFT warns when the active adapter is deleted
            self._peft.peft_config.pop(name, None)
        for path, module in self._wrapped():
            if self._peft is not None:
                module.delete_adapter(name)
            else:
                self.base.model.set_submodule(path, module.get_base_layer())

    def _config(self, recipe: Recipe, selected: list[str]) -> LoraConfig:
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
            task_type=TASK_MODELS[self.base.task].peft_type,
            modules_to_save=list(self._heads) or None,
        )

    def _parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        """An adapter's matrices by PEFT's names, in the model's order."""
        matrices = {
            f"base_model.model.{path}.{matrix}.{name}.weight": getattr(layer, matrix)[name].weight
            for path, layer in self._wrapped()
            for matrix in ("lora_A", "lora_B")
            if name in getattr(layer, matrix)
        }
        heads = {
            f"base_model.model.{path}.modules_to_save.{name}.{own}": parameter
            for path, head in self._heads_of(name).items()
            for own, parameter in head.named_parameters()
        }
        return {**matrices, **heads}

    def _live(self) -> PeftModel:
        if self._peft is None:
            raise RuntimeError("the base has no adapter")
        return self._peft


def _by_decay(
    heads: Iterable[torch.nn.Module],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The parameters of heads that weight decay is for, and those that it spares."""
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for head in heads:
        names = set(undecayed(head))
        for name, parameter in head.named_parameters():
            (spared if name in names else decayed).append(parameter)
    return decayed, spared


def _model_config_file(model: PreTrainedModel) -> bytes:
    """The configuration as `save_pretrained` writes it, without what was only for this run."""
    values = model.config.to_diff_dict()
    for key in ("quantization_config", "_attn_implementation", "attn_implementation"):
        values.pop(key, None)
    return json.dumps(values, indent=2, sort_keys=True, default=str).encode()


def _config_file(config: LoraConfig) -> bytes:
    """What `config.save_pretrained` writes. It would write into a folder, which only a disk has."""
    values = config.to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return json.dumps(plain, indent=2, sort_keys=True).encode()
