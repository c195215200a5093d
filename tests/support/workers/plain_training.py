"""Training as a script would write it: the oracle of the project's own.

Shares with it what defines a trial, not what trains it: the data order, the dropout masks as a function
of (seed, step, example, layer), and the base. Everything else is PEFT's, torch's and transformers' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import get_scheduler

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase, set_training
from workers.data.batches import epoch_order
from workers.data.examples import Example
from workers.lora.lora_dropout import keep_scale, row_keys


class CountedDropout(torch.nn.Module):
    """In the place of PEFT's dropout module: the masks that the rows of the current batch have."""

    keys: Sequence[int] = ()

    def __init__(self, layer: int, rate: float) -> None:
        super().__init__()
        self.layer, self.rate = layer, rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = torch.tensor(CountedDropout.keys)
        rates = torch.full((len(keys),), self.rate)
        return x * keep_scale(keys, self.layer, x.shape[1], x.shape[2], rates, x.dtype)


def batch_orders(recipe: Recipe, examples: int) -> list[list[int]]:
    """The examples of every optimizer step."""
    per_epoch = math.ceil(examples / recipe.batch_size)
    batches = []
    for step in range(math.ceil(recipe.epochs * per_epoch)):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(examples, recipe.seed, epoch)
        batches.append(order[place * recipe.batch_size :][: recipe.batch_size])
    return batches


@contextmanager
def plain_peft(base: LoadedBase, recipe: Recipe) -> Iterator[list[torch.nn.Parameter]]:
    """The base under an adapter as a script would make it; yields the adapter's matrices."""
    linear = [
        module
        for module in base.model.modules()
        if isinstance(module, torch.nn.Linear) and module is not base.model.get_output_embeddings()
    ]
    targets: str | list[str]
    match recipe.target_modules:
        case "attention":
            targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        case "all-linear":
            targets = "all-linear"
        case names:
            targets = list(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        peft = get_peft_model(
            base.model,
            LoraConfig(
                r=recipe.lora_r,
                lora_alpha=recipe.lora_alpha or recipe.lora_alpha_ratio * recipe.lora_r,  # type: ignore[arg-type]
                use_rslora=recipe.use_rslora,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
        )
    for module in base.model.modules():
        if isinstance(module, LoraLayer) and recipe.lora_dropout:
            layer = next(n for n, one in enumerate(linear) if one is module.get_base_layer())
            module.lora_dropout["default"] = CountedDropout(layer, recipe.lora_dropout)
    set_training(base.model, True)
    try:
        yield [parameter for parameter in peft.parameters() if parameter.requires_grad]
    finally:
        peft.unload()


@dataclass
class PlainTraining:
    """What a plain loop came to, step by step and in the end."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)


def mean_loss(base: LoadedBase, batch: Sequence[Example]) -> torch.Tensor:
    """Cross-entropy over the supervised tokens of a padded batch, from the model's whole logits."""
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        for rows, padding in (([e.input_ids for e in batch], 0), ([e.labels for e in batch], -100))
    )
    lengths = torch.tensor([len(e.input_ids) for e in batch])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    logits = base.model(input_ids=ids, attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def plain_loop(base: LoadedBase, recipe: Recipe, examples: Sequence[Example]) -> PlainTraining:
    """Training as in a tutorial: PEFT's forward, torch's AdamW and clipping, transformers' schedule."""
    result = PlainTraining()
    batches = batch_orders(recipe, len(examples))
    with plain_peft(base, recipe) as parameters:
        optimizer = torch.optim.AdamW(
            parameters,
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
        )
        schedule = get_scheduler(
            "constant_with_warmup" if recipe.lr_scheduler == "constant" else recipe.lr_scheduler,
            optimizer,
            num_warmup_steps=math.ceil(recipe.warmup_ratio * len(batches)),
            num_training_steps=len(batches),
        )
        for step, batch in enumerate(batches):
            CountedDropout.keys = row_keys(recipe.seed, step, batch)
            loss = mean_loss(base, [examples[index] for index in batch])
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            result.losses.append(loss.item())
            result.norms.append(norm.item())
            result.rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        result.weights = [parameter.detach().clone() for parameter in parameters]
    return result
