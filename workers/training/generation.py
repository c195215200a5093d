"""Greedy generation by adapters, and what a row gives them to go on from and expects of them.

Plain greedy decoding: the checkpoint's own generation_config may ask for sampling, beams, penalties, or
forced and suppressed tokens, and an adapter would be measured by them, too. Kept of it are only the tokens
that end a text, and the one that a decoder begins with where config.json names none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from workers.base.base_model import LoadedBase, set_training
from workers.base.causal_attention import NAME as WITHOUT_MASKS
from workers.data.examples import Example, Seq2SeqExample
from workers.data.tokenization import IGNORED, is_special
from workers.device.devices import to_device
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.errors import RowError
from workers.lora.adapters import Adapter, AdapterHost
from workers.lora.multi_lora import RowsUnknownError
from workers.training.evaluation import length_batches
from workers.training.objectives.forward import autocast


@dataclass(frozen=True)
class Prompt:
    """What a model goes on from, and what it should write."""

    input_ids: torch.Tensor
    """int64, [T]."""
    reference: str
    """As `decoded` gives it."""
    end: int | None
    """The special token that ends the reference; None: another one does, as where it was cut."""

    @property
    def key(self) -> bytes:
        """Equal where the tokens are."""
        return _key(self.input_ids)


def prompt_of(example: Example | Seq2SeqExample, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The tokens before the last run of supervised ones, which is the reference: of a conversation, the last
    turn that carries loss. Of a row with a source and a target, those.

    Raises:
        RowError: All of the row carries loss.
    """
    input_ids, reference = example.input_ids, example.labels
    if isinstance(example, Example):
        (supervised,) = (example.labels != IGNORED).nonzero(as_tuple=True)
        end = int(supervised[-1]) + 1
        (masked,) = (example.labels[:end] == IGNORED).nonzero(as_tuple=True)
        start = int(masked[-1]) + 1
        if start <= 1:  # the first token never carries loss, as nothing predicts it
            raise RowError(
                "The row has no prompt to generate from: all of it carries loss. Metrics of generated text"
                " need data with prompts, as of the formats prompt_completion and messages. Or use eval_loss."
            )
        input_ids, reference = input_ids[:start], reference[start:end]
    last = int(reference[-1])
    return Prompt(input_ids, decoded(tokenizer, reference), last if is_special(tokenizer, last) else None)


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor) -> str:
    """The text of a reference or of generated tokens, without special tokens."""
    text: str = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text


def generation_lengths(
    base: LoadedBase, prompts: Sequence[torch.Tensor], max_new_tokens: int
) -> list[tuple[int, int]]:
    """The tokens that each prompt and what is written after it may take in all, and the new ones among them,
    which are fewer where the base has no more positions."""
    lengths = []
    for prompt in prompts:
        taken = 0 if base.model.config.is_encoder_decoder else len(prompt)
        new = (
            max_new_tokens if base.max_positions is None else min(max_new_tokens, base.max_positions - taken)
        )
        lengths.append((len(prompt) + new, new))
    return lengths


@torch.no_grad()
def generate(
    host: AdapterHost,
    adapters: Sequence[Adapter],
    prompts: Sequence[torch.Tensor],
    *,
    max_new_tokens: int,
    token_budget: int,
    heartbeat: Heartbeat = UNWATCHED,
    ends: Collection[int] = (),
) -> list[list[torch.Tensor]]:
    """Lets adapters write greedily from the same prompts, in shared batches with a cache of keys and values.

    By transformers' own `generate`. Equal prompts are written from once. Modules are switched to evaluation,
    all but the quantized ones (see `base_model.set_training`), and left so; everything else about the model
    is afterwards as it was, also after an exception.

    Args:
        host: The base with the adapters on it.
        adapters: At least one.
        prompts: int64 [T] each, at least one. For a decoder, of fewer tokens than it has positions.
        max_new_tokens: Most tokens written from a prompt.
        token_budget: Padded tokens per batch, prompts and new ones, as `generation_lengths` counts them.
        heartbeat: Notified of each batch and of each token.
        ends: Tokens that end a text, beside those of the base's generation_config and tokenizer.

    Returns:
        Of each adapter, for each prompt, the new tokens (int64, on the CPU), with the one that ended them.

    Raises:
        torch.OutOfMemoryError: A batch did not fit; the same call with a smaller budget may.
    """
    set_training(host.base.model, False)
    distinct = {_key(prompt): prompt for prompt in prompts}
    lengths = generation_lengths(host.base, list(distinct.values()), max_new_tokens)
    longest = max(total for total, _new in lengths)
    settings = _greedy(host.base, ends)
    written: list[dict[bytes, torch.Tensor]] = []
    with _generating(host.base):
        while len(written) < len(adapters):
            together = max(1, token_budget // longest) if host.shares_evaluations else 1
            some = adapters[len(written) : len(written) + together]
            writer = _Writer(host, some, settings, heartbeat)
            try:
                written += writer.write(distinct, max_new_tokens, token_budget // len(some))
            except RowsUnknownError:
                if len(some) == 1:
                    raise
                # The host knows now, and batches are of one adapter each.
    return [[own[_key(prompt)] for prompt in prompts] for own in written]


@dataclass(frozen=True)
class _Writer:
    """Adapters that write together."""

    host: AdapterHost
    adapters: Sequence[Adapter]
    settings: Mapping[str, Any]
    heartbeat: Heartbeat

    def write(
        self, prompts: Mapping[bytes, torch.Tensor], max_new_tokens: int, token_budget: int
    ) -> list[dict[bytes, torch.Tensor]]:
        """What each adapter writes from each prompt, under the prompt's key."""
        written: list[dict[bytes, torch.Tensor]] = [{} for _ in self.adapters]
        keys, texts = list(prompts), list(prompts.values())
        lengths = generation_lengths(self.host.base, texts, max_new_tokens)
        # Those with fewer new tokens are the longest; in a batch with others they would run out of positions.
        by_new = sorted(range(len(texts)), key=lambda index: lengths[index][1])
        for new, group in groupby(by_new, key=lambda index: lengths[index][1]):
            indices = list(group)
            for batch in length_batches([lengths[index][0] for index in indices], token_budget):
                chosen = [indices[place] for place in batch]
                rows = iter(self._batch([texts[index] for index in chosen], new))
                for own in written:
                    own.update((keys[index], next(rows)) for index in chosen)
        return written

    def _batch(self, prompts: Sequence[torch.Tensor], max_new_tokens: int) -> list[torch.Tensor]:
        """What each adapter in turn writes from each of the prompts."""
        base, count = self.host.base, len(self.adapters)
        encodes = base.model.config.is_encoder_decoder
        input_ids, mask = (
            to_device(tensor.repeat(count, 1), base.device)
            for tensor in _padded(prompts, base.pad_id, left=not encodes)
        )
        groups = [adapter.rows(len(prompts)) for adapter in self.adapters]
        form = self.host.choose_form(groups)
        tokens = input_ids.shape[1]
        with (
            self.heartbeat.passing("generation"),
            self.host.multi_lora.running(groups, tokens=tokens, form=form, device=base.device) as lora_pass,
            autocast(base),
        ):

            def begin_step(_model: Any, _args: Any, inputs: dict[str, Any]) -> None:
                self.heartbeat.beat()
                given = inputs["decoder_input_ids" if encodes else "input_ids"]
                lora_pass.tokens = given.shape[1]  # the prompt's at first, then one

            hook = base.model.register_forward_pre_hook(begin_step, with_kwargs=True)
            try:
                rows = base.model.generate(
                    input_ids=input_ids,
                    attention_mask=mask,
                    generation_config=GenerationConfig(**self.settings, max_new_tokens=max_new_tokens),
                )
            finally:
                hook.remove()
        return [self._ended(row) for row in rows[:, 1 if encodes else tokens :].cpu()]

    def _ended(self, row: torch.Tensor) -> torch.Tensor:
        """A row without the padding behind its end."""
        (found,) = torch.isin(row, torch.tensor(self.settings["eos_token_id"] or [])).nonzero(as_tuple=True)
        return row[: int(found[0]) + 1 if len(found) else len(row)].clone()


@contextmanager
def _generating(base: LoadedBase) -> Iterator[None]:
    """Inside, attention heeds masks, as padding on the left needs it, and the checkpoint asks for nothing."""
    model = base.model
    own = model.generation_config
    without_masks = model.config.get_text_config()._attn_implementation == WITHOUT_MASKS
    try:
        if without_masks:
            model.set_attn_implementation("sdpa")
        model.generation_config = GenerationConfig()  # else it fills in what `_greedy` leaves out
        yield
    finally:
        model.generation_config = own
        if without_masks:
            model.set_attn_implementation(WITHOUT_MASKS)


def _greedy(base: LoadedBase, ends: Collection[int]) -> dict[str, Any]:
    """Of a GenerationConfig, all but the number of tokens."""
    own, config = base.model.generation_config, base.model.config
    named = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    all_ends = {int(end) for end in (*named, base.tokenizer.eos_token_id, *ends) if end is not None}
    start = getattr(config, "decoder_start_token_id", None)  # what training begins with
    return {
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,  # whatever config.json or the training says
        "pad_token_id": base.pad_id,
        "eos_token_id": sorted(all_ends) or None,
        "decoder_start_token_id": own.decoder_start_token_id if start is None else start,
    }


def _padded(prompts: Sequence[torch.Tensor], pad_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [B, T] twice: the tokens, and 1 for each and 0 for padding."""
    side = "left" if left else "right"
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad(list(prompts), batch_first=True, padding_value=pad_id, padding_side=side),
        pad([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side=side),
    )


def _key(tokens: torch.Tensor) -> bytes:
    return tokens.numpy().tobytes()
