"""The base model: quantized by bitsandbytes on loading, frozen, ready to carry LoRA adapters.

`peft.prepare_model_for_kbit_training` is not used, although the QLoRA examples call it. Beyond freezing,
which is done here, it turns on gradient checkpointing and casts every parameter that is not quantized
(embeddings, norms, output head) to float32. In float32, as on a CPU, the cast changes nothing. In
bfloat16 it makes the residual stream float32, and with it attention, which then loses its flash kernels
unless everything runs under autocast; it costs gigabytes (bitsandbytes issue 1569) and gives the same
losses. TRL dropped it for these reasons (its pull requests 4335, 4457, 4577). Llama-style norms compute
in float32 whatever their weights are, and PEFT keeps the adapter's own weights in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from search_spaces.definition import ModelSpec
from search_spaces.tasks import TASKS, Task
from workers.base.causal_attention import attend_without_masks, may_lay_rows_end_to_end
from workers.base.chunked_loss import head_is_plain
from workers.base.heads import TASK_MODELS, Labels, configure_head, head_paths, pooler_path, row_end_id
from workers.base.loaded_weights import check_loaded, without_load_report
from workers.base.model_files import check_model_folder, confined_model, find_model_folder
from workers.base.own_dropout import disable_dropout_layers, has_dropout, switch_dropout_off
from workers.base.quantization import compute_dtype_of, quantization_config, silence_int8_cast_notice
from workers.device.memory import limited_memory
from workers.errors import ModelError, faults_of_libraries
from workers.local_files import Roots


@dataclass
class LoadedBase:
    """A quantized, frozen base model with its tokenizer, as every trial of a study shares it."""

    model: PreTrainedModel
    """No parameter requires a gradient. Switch its mode with `set_training` only."""
    tokenizer: PreTrainedTokenizerBase
    """As it was saved: a missing pad token stays missing, and no embedding is ever resized."""
    device: torch.device
    compute_dtype: torch.dtype
    spec: ModelSpec
    max_positions: int | None
    """Tokens the model has positions for; None where the architecture sets no limit."""
    head_is_plain: bool = False
    """Whether the logits are the output head's and nothing else, so that they can be made in chunks."""
    has_dropout: bool = False
    """Whether the base draws random numbers of its own in training, such as the dropout of GPT-2."""
    padding_free: bool = False
    """Whether passes are over rows laid end to end, without padding. On a CPU, where the architecture allows
    it; on a GPU rows are padded."""
    task: Task = "causal_lm"
    labels: Labels | None = None
    """What its head answers; None: it has none, or one that gives a number."""
    heads: tuple[str, ...] = ()
    """Paths of the modules that each trial trains whole, in full precision, beside its adapter."""
    new_heads: tuple[str, ...] = ()
    """Those of them that the checkpoint lacks: each trial draws its own from its seed."""

    @property
    def rows_independent(self) -> bool:
        """Whether what a forward pass computes for one row does not depend on the others.

        LLM.int8() on CUDA looks for outlier features over all the rows of a pass (arXiv 2208.07339); on a
        CPU, bitsandbytes computes with the dequantized weights.
        """
        return not (self.spec.quantization == "int8" and self.device.type == "cuda")

    @property
    def pad_id(self) -> int:
        """A token id to fill up shorter rows with. Attention mask and labels hide it, so any will do, but for
        a head on a decoder, which finds a row's last token by it, and for RoBERTa, which counts positions by
        it: the model's own."""
        return _pad_id(self.model.config, self.tokenizer, self.vocabulary_size)

    @property
    def decoder_start_id(self) -> int:
        """What the decoder of an encoder-decoder model is given first."""
        return decoder_start_id(self.model.config, self.spec.id)

    @property
    def row_end_id(self) -> int | None:
        """The token of which every row must have as many; None: there is none."""
        return row_end_id(self.model.config, self.task)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embedding: token ids must be below it."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def pick_device() -> torch.device:
    """The first visible CUDA device (Ray shows a worker only its own), else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def load_base(
    spec: ModelSpec,
    device: torch.device | None = None,
    roots: Roots = None,
    memory_gib: float | None = None,
    *,
    task: Task = "causal_lm",
    labels: Labels | None = None,
) -> LoadedBase:
    """Loads tokenizer and model, quantizing the linear layers on the way as `spec` says.

    The output head and the embeddings stay in the compute dtype, which is also the dtype of all that is
    not quantized: bfloat16 on a CUDA device that computes in it, else float32. float16 is never chosen by
    itself, because without loss scaling its gradients underflow.

    Args:
        spec: the model, its quantization and compute dtype.
        device: where the whole model goes; None means `pick_device()`.
        roots: folders that a local model must lie in; None: anywhere.
        memory_gib: GiB that the model may take without its weights; None: half of the machine's memory.
        task: which class of the architecture is loaded.
        labels: what its head answers; None: a number, or the task has no head.

    Raises:
        DataError: what config.json describes needs more memory than that.
        ModelError: the model is missing, unsafe (pickled weights, remote code), incomplete, corrupt, or
            does not fit the device. The message says what to do.
    """
    device = device or pick_device()
    folder = find_model_folder(spec)
    with (
        confined_model(spec, roots),
        faults_of_loading(f"The model {spec.id} could not be loaded from {folder}"),
    ):
        check_model_folder(folder, spec.id, task=task)
        with limited_memory(memory_gib, f"The model {spec.id} cannot be loaded"):
            config = _read_config(folder)
            if spec.dropout == "off":
                switch_dropout_off(config)
            tokenizer = load_tokenizer(str(folder), spec.id)
            if TASKS[task].has_head:
                vocabulary = int(getattr(config.get_text_config(), "vocab_size", 0)) or len(tokenizer)
                configure_head(config, task, labels, _pad_id(config, tokenizer, vocabulary))
            outline = _build_without_weights(config, task)
        base = _load_base(spec, device, folder, tokenizer, config, outline, task)
    base.labels = labels
    return base


def build_without_weights(
    folder: Path, task: Task = "causal_lm", labels: Labels | None = None
) -> PreTrainedModel:
    """The model that a config.json describes, on torch's device `meta`, with the head of the task. A number
    in it may ask for any amount of memory all the same."""
    config = _read_config(folder)
    if TASKS[task].has_head:
        configure_head(config, task, labels, pad_id=0)
    return _build_without_weights(config, task)


def _read_config(folder: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return config


def _build_without_weights(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = TASK_MODELS[task].auto.from_config(config, trust_remote_code=False)
    return model


def _pad_id(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> int:
    own = getattr(config.get_text_config(), "pad_token_id", None)
    candidates = (own, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None and 0 <= token < vocabulary)


def _load_base(
    spec: ModelSpec,
    device: torch.device,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    outline: PreTrainedModel,
    task: Task,
) -> LoadedBase:
    compute_dtype = compute_dtype_of(spec, device, config.model_type)
    if spec.quantization == "int8" and device.type == "cuda":
        silence_int8_cast_notice()
    heads = head_paths(outline) if TASKS[task].has_head else ()
    pooler = pooler_path(outline) if heads else None
    unquantized = [*([pooler] if pooler else []), *heads]
    try:
        with without_load_report() if heads else nullcontext():
            model, loading = TASK_MODELS[task].auto.from_pretrained(
                str(folder),
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                dtype=compute_dtype,
                quantization_config=quantization_config(spec, compute_dtype, outline, unquantized),
                device_map={"": str(device)},
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the shapes in the message
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model {spec.id} with quantization {spec.quantization} does not fit the memory of {device}. "
            "Use nf4, a smaller model, or a device with more free memory."
        ) from error
    new = check_loaded(model, loading, spec.id, unquantized)
    model.config.use_cache = False  # keys and values of past tokens are of no use in training
    model.requires_grad_(False)
    if spec.dropout == "off":
        disable_dropout_layers(model)
    set_training(model, False)
    own_dropout = has_dropout(model)
    causal = attend_without_masks(model) and device.type == "cpu" and not (heads or own_dropout)
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        device=device,
        compute_dtype=compute_dtype,
        spec=spec,
        max_positions=max_positions(model),
        head_is_plain=not heads and head_is_plain(model),
        has_dropout=own_dropout,
        padding_free=causal and may_lay_rows_end_to_end(model),
        task=task,
        heads=tuple(path for path in unquantized if path in heads or path in new),
        new_heads=new,
    )


def decoder_start_id(config: PretrainedConfig, name: str) -> int:
    """What the decoder of an encoder-decoder model is given first.

    Args:
        config: The model's.
        name: The model as the definition calls it, for messages.

    Raises:
        ModelError: Nothing says what.
    """
    for key in ("decoder_start_token_id", "bos_token_id"):
        if (token := getattr(config, key, None)) is not None:
            return int(token)
    raise ModelError(
        f"The config.json of the model {name} names no decoder_start_token_id, so nothing says what its "
        "decoder begins with. Add it, as the model's authors trained it."
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """Tokens that a row may have. RoBERTa and its kin number positions from behind that of the padding."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions:
        return None
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return int(positions)


def set_training(model: torch.nn.Module, training: bool) -> None:
    """Switches dropout and the like, but keeps every bitsandbytes layer in training mode.

    In eval mode those layers change what a trial computes. On a CPU with AVX512-BF16, `Linear4bit`
    repacks its weight in place for inference (and asserts `out_features % 32 == 0`), rounding the
    quantization state under a model that goes on training; on any CPU `Linear8bitLt` quantizes the
    activations too, so an evaluation would be of another model than the one that is trained. They have
    no other train/eval behaviour. Call this in place of `model.train()` and `model.eval()`, and after
    anything that calls those, such as `PeftModel.from_pretrained`.
    """
    model.train(training)
    for module in model.modules():
        if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            module.train(True)


def activations_checkpointed(model: PreTrainedModel) -> bool:
    """Whether `checkpoint_activations` is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def checkpoint_activations(model: PreTrainedModel, wanted: bool) -> None:
    """Switches gradient checkpointing: activations are computed again in the backward pass, not kept.

    The variant without re-entrance, which needs no input that requires a gradient.
    """
    checkpointed = activations_checkpointed(model)
    if wanted and not checkpointed:
        # transformers 5 renamed both on the way; the older names warn where the newer are there.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
        leave_inputs_without_gradient(model)
    elif not wanted and checkpointed:
        disable = getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)
        disable()


def leave_inputs_without_gradient(model: PreTrainedModel) -> None:
    """Takes off the hook that makes the embeddings' output require a gradient, if there is one.

    transformers and PEFT put it on a model that checkpoints its activations, one more with each adapter
    that begins. Only re-entrant checkpointing needs it.
    """
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()


def load_tokenizer(folder: str, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder. Raises ModelError, naming the model as the definition does."""
    with faults_of_loading(f"The tokenizer of the model {name} could not be loaded from {folder}"):
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise ModelError(
                f"The tokenizer of the model {name} needs Python code from its own checkpoint, and "
                "Nightsweep never runs remote code. Choose a model whose tokenizer is part of transformers."
            ) from error


def faults_of_loading(what: str) -> AbstractContextManager[None]:
    """What transformers raises for a checkpoint that it cannot load is a ModelError; a broken GPU is not."""
    return faults_of_libraries(lambda: what, ModelError, passing=(torch.AcceleratorError,))
