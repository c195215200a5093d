"""Cross-entropy over a frozen output head, in chunks of rows.

A vocabulary of 150,000 makes the logits the largest tensor of a pass: 0.6 MB a token in float32, and their
gradient as much again. Here logits live for one chunk of rows. As the head is frozen, the gradient with
regard to its input can be taken at once, while they are there; what is kept is as large as the hidden
states. The idea is that of Liger Kernel's fused linear cross-entropy (Hsu et al., arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.device.generators import seeded

OwnLosses = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From logits, float32 [N, V], and targets, int64 [N], to what each target adds to the objective, float32
[N], and its gradient with regard to the logits."""


@dataclass(frozen=True, eq=False)
class TargetLosses:
    """What is known of S targets after a forward pass."""

    losses: torch.Tensor
    """float32 [S], in nats; detached."""
    correct: torch.Tensor
    """bool [S]: whether the argmax is the target."""
    objective: torch.Tensor | None
    """float32 scalar, the sum of (smoothed, or own) losses * weights, differentiable with regard to the
    hidden states and to nothing else; None where no weights were given."""


def target_losses(
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    *,
    smoothing: torch.Tensor | None = None,
    own: OwnLosses | None = None,
    chunk_tokens: int,
) -> TargetLosses:
    """Cross-entropy of S targets, never holding more than `chunk_tokens` rows of logits.

    Rows do not touch each other: a row that is not finite gives a loss and a gradient that are not finite,
    and its neighbours' are what they are without it. Runs under the caller's autocast; losses and softmax
    are float32. A gradient is rounded to the dtype of the logits in the forward pass already, so a loss
    scale (float16) belongs in the weights and not on the objective.

    Args:
        head: The output head, frozen, such as `model.get_output_embeddings()`.
        hidden: [S, H], the hidden states that predict the targets.
        targets: int64 [S], token ids; there is no id to ignore.
        weights: float32 [S], what each loss counts in the objective. None computes no gradient.
        smoothing: float32 [S], from 0 to 1: how much of each target's probability is spread evenly over the
            vocabulary in the objective, as with `label_smoothing` of `torch.nn.functional.cross_entropy`;
            `losses` stay those of the targets themselves. Without weights it has no effect.
        own: In the place of cross-entropy in the objective, without smoothing; what it takes itself comes to
            `chunk_bytes`. Without weights it has no effect.
        chunk_tokens: Rows of logits at a time; `chunk_bytes` says what they take.
    """
    if weights is not None:
        objective, losses, correct = _Objective.apply(  # type: ignore[no-untyped-call]
            hidden, head, targets, weights, smoothing, own, chunk_tokens
        )
        return TargetLosses(losses, correct, objective)
    losses, correct = _results(hidden)
    with torch.no_grad():
        for rows in _chunks(hidden, chunk_tokens):
            logits = head(hidden[rows])
            scores = logits.float() if _is_plain_linear(head) else _copy(logits)
            del logits
            _losses_in_place(scores, targets[rows], losses[rows], correct[rows])
            del scores  # else it stays alive beside the next chunk's
    return TargetLosses(losses, correct, None)


def chunk_bytes(chunk_tokens: int, vocabulary: int) -> int:
    """Most bytes of logits and their gradient at any moment: 8 * chunk_tokens * vocabulary.

    Two float32 copies, or one and two in half precision. A plain linear head takes less: one float32 copy
    computing in float32 (4 bytes an element), one and a half in half precision (6).
    """
    return 8 * chunk_tokens * vocabulary


@dataclass(frozen=True, eq=False)
class _Part:
    """One chunk's part of what is given and of what is filled in (losses, minimized, correct); all [N]."""

    targets: torch.Tensor
    weights: torch.Tensor
    smoothing: torch.Tensor | None
    losses: torch.Tensor
    own: OwnLosses | None
    """None: cross-entropy, smoothed or not."""
    minimized: torch.Tensor
    """`losses` itself without smoothing or a loss of its own."""
    correct: torch.Tensor


class _Objective(torch.autograd.Function):
    """The weighted sum of losses; its gradient is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: nn.Module,
        targets: torch.Tensor,
        weights: torch.Tensor,
        smoothing: torch.Tensor | None,
        own: OwnLosses | None,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses, correct = _results(hidden)
        minimized = losses if smoothing is None and own is None else torch.empty_like(losses)
        gradient = torch.empty_like(hidden)
        plain = _is_plain_linear(head)
        for rows in _chunks(hidden, chunk_tokens):
            part = _Part(
                targets[rows],
                weights[rows],
                None if smoothing is None else smoothing[rows],
                losses[rows],
                own,
                minimized[rows],
                correct[rows],
            )
            gradient[rows] = (_plain_chunk if plain else _any_chunk)(head, hidden[rows], part)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses, correct)
        return (minimized * weights).sum(), losses, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_objective: torch.Tensor, *_unused: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_objective, None, None, None, None, None, None


def _results(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    return losses, torch.empty_like(losses, dtype=torch.bool)


def _chunks(hidden: torch.Tensor, chunk_tokens: int) -> list[slice]:
    return [slice(start, start + chunk_tokens) for start in range(0, len(hidden), chunk_tokens)]


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether the gradient through the head is a product with its weight."""
    changed = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) is nn.Linear and not changed


def _plain_chunk(head: nn.Module, hidden: torch.Tensor, part: _Part) -> torch.Tensor:
    """Fills in the part; returns the objective's gradient with regard to the chunk."""
    logits = head(hidden)
    dtype = logits.dtype
    scores = logits.float()
    del logits
    _weighted_gradient_in_place(scores, part)
    weight: torch.Tensor = head.weight  # type: ignore[assignment]
    return torch.mm(scores.to(dtype), weight.to(dtype))


def _any_chunk(head: nn.Module, hidden: torch.Tensor, part: _Part) -> torch.Tensor:
    """The same through any differentiable module, such as a quantized layer."""
    with torch.enable_grad():
        inputs = hidden.detach().requires_grad_()
        logits = head(inputs)
    scores = _copy(logits.detach())
    _weighted_gradient_in_place(scores, part)
    (gradient,) = torch.autograd.grad(logits, inputs, scores.to(logits.dtype))
    return gradient


def _copy(logits: torch.Tensor) -> torch.Tensor:
    """float32, and nobody else's: a module may return, or keep for its backward pass, what it has given."""
    return logits.to(torch.float32, copy=True)


def _weighted_gradient_in_place(scores: torch.Tensor, part: _Part) -> None:
    """Turns float32 logits [N, V] into (softmax - distribution of the target) * weight.

    Of a loss of its own into that one's gradient * weight.
    """
    if part.own is not None:
        values, slopes = part.own(scores, part.targets)
        part.minimized.copy_(values)  # either may be a view of the scores
        slopes = slopes * part.weights.unsqueeze(1)
        _losses_in_place(scores, part.targets, part.losses, part.correct)
        scores.copy_(slopes)
        return
    smoothing = part.smoothing
    means = None if smoothing is None else part.minimized
    sums = _losses_in_place(scores, part.targets, part.losses, part.correct, means)
    scores.mul_((part.weights / sums).unsqueeze(1))
    on_target = part.weights
    if smoothing is not None:
        smoothed = part.losses.lerp(sums.log() - part.minimized, smoothing)
        # A logit of -inf makes the even part infinite; where smoothing is 0, it does not count.
        part.minimized.copy_(smoothed.where(smoothing > 0, part.losses))
        scores.sub_((part.weights * smoothing / scores.shape[1]).unsqueeze(1))
        on_target = part.weights * (1 - smoothing)
    scores.scatter_add_(1, part.targets.unsqueeze(1), -on_target.unsqueeze(1))


def _losses_in_place(
    scores: torch.Tensor,
    targets: torch.Tensor,
    losses: torch.Tensor,
    correct: torch.Tensor,
    means: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turns float32 logits [N, V] into exp(logits - their maximum), whose sums [N] it returns.

    `means` [N] gets the means of logits - their maximum.
    """
    highest, places = scores.max(dim=1)
    torch.eq(places, targets, out=correct)
    scores.sub_(highest.unsqueeze(1))
    if means is not None:
        torch.mean(scores, dim=1, out=means)
    chosen = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    sums = scores.exp_().sum(dim=1)
    torch.sub(sums.log(), chosen, out=losses)
    return sums


def hidden_states(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    decoder_input_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last hidden states [B, T, H], which a plain head turns into logits (see `head_is_plain`).

    Of an encoder-decoder model those of the decoder, [B, U, H].

    Args:
        model: A language model of transformers; adapters may have been put on its layers.
        input_ids: int64 [B, T]
        attention_mask: int64 [B, T]; None: no token is padding.
        decoder_input_ids: int64 [B, U], of an encoder-decoder model.
        position_ids: int64 [B, T], of rows laid end to end; None: 0, 1, 2, ... in each row.

    Raises:
        AttributeError: The model's backbone returns no hidden states.
    """
    output = _backbone_output(model, input_ids, attention_mask, decoder_input_ids, position_ids)
    last_hidden_state: torch.Tensor = output.last_hidden_state
    return last_hidden_state


def _backbone_output(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    decoder_input_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
) -> Any:
    given = {"decoder_input_ids": decoder_input_ids, "position_ids": position_ids}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given)


@torch.no_grad()
def head_is_plain(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its output head applied to `hidden_states`, and nothing else.

    Some architectures scale what goes into the head (MiniCPM), or scale (Granite, Cohere) or cap (Gemma 2)
    what comes out. Instead of a list of them there is an experiment on two short rows: does the head get
    the backbone's output, and are the logits what the head returns? To see a cap, which leaves small
    values as they are, the head's output is replaced with values from -50 to 50.

    Modules stay in the mode they are in. Where that draws random numbers, both passes draw the same ones,
    and torch's global generators are left as they were.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = (torch.arange(1, 9, device=model.device) * 7919 % vocabulary).view(2, 4)
    attention_mask = torch.ones_like(input_ids)
    decoder = {"decoder_input_ids": input_ids} if model.config.is_encoder_decoder else {}
    taken: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def replace(_head: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        taken.append(inputs[0])
        values = torch.linspace(-50, 50, output.numel(), device=output.device)
        given.append(values.view(output.shape).to(output.dtype))
        return given[-1]

    with seeded(0, model.device):
        hidden = getattr(
            _backbone_output(model, input_ids, attention_mask, decoder.get("decoder_input_ids")),
            "last_hidden_state",
            None,
        )
    if hidden is None:
        return False
    handle = head.register_forward_hook(replace)
    try:
        with seeded(0, model.device):
            logits = model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **decoder
            ).logits
    finally:
        handle.remove()
    if len(taken) != 1 or logits.shape != given[0].shape or taken[0].shape != hidden.shape:
        return False
    # The hidden states come from two passes and may differ in rounding; the logits were handed over.
    difference = (taken[0] - hidden).abs().max() / hidden.abs().max()
    return bool(difference <= 1e-3) and torch.equal(logits.float(), given[0].float())
